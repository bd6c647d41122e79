"""Find the length of an MP3 whose header does not give it.

libsndfile takes the length of an MP3 from the header that encoders put before the sound (Xing, Info or VBRI). Without
one, it guesses the length from the size of the first frame; with a variable bit rate it then reads only a part, or
promises more than the file holds. This module counts the frames (ISO/IEC 11172-3 and 13818-3, layer III), and makes a
Xing header.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

MARKS = (b"Xing", b"Info", b"VBRI")
MPEG1, LAYER3, MONO = 3, 1, 3
KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s by index, for MPEG-1, and for MPEG-2 and 2.5."""
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Sampling rates by version and index, in Hz."""
MOST_FRAMES, MOST_PASSED = 2**22, 2**16
"""Limits on the frames counted, at least a day of sound, and on the bytes skipped between them: an untrusted file may
be crafted to take long to count."""
ROOMY = 9  # index of a bit rate whose frames have room for a Xing header at any sampling rate


@dataclass(frozen=True)
class Frame:
    """A frame's header.

    Args:
        start: offset of the frame, in bytes.
        size: size of the frame, in bytes.
        header: the header's four bytes.
    """

    start: int
    size: int
    header: bytes

    @property
    def side_info(self) -> int:
        """Bytes between the header and the place of a Xing header."""
        if self.header[1] >> 3 & 3 == MPEG1:
            return 17 if self.header[3] >> 6 == MONO else 32
        return 9 if self.header[3] >> 6 == MONO else 17


def xing_frame(content: bytes | mmap) -> tuple[int, bytes] | None:
    """Return the offset of an MP3's first frame, and a frame with the frame count to insert there.

    Args:
        content: the file's bytes.

    Returns:
        None if the file gives the count itself, or holds no frames.
    """
    frames = _frames(content, _after_tag(content))
    first = next(frames, None)
    if first is None or any(mark in content[first.start : first.start + first.size][:200] for mark in MARKS):
        return None
    count = 1 + sum(1 for _ in frames)
    second, third, fourth = first.header[1] | 1, ROOMY << 4 | first.header[2] & 0x0C, first.header[3]
    header = bytes([0xFF, second, third, fourth])
    frame = header + bytes(first.side_info) + b"Xing" + struct.pack(">II", 1, count)
    return first.start, frame.ljust(_size(header), b"\0")


def _after_tag(content: bytes | mmap) -> int:
    """Return the offset of the sound, after an ID3v2 tag if there is one."""
    if content[:3] != b"ID3" or len(content) < 10:
        return 0
    size = 0
    for byte in content[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _frames(content: bytes | mmap, start: int) -> Iterator[Frame]:
    """Yield the frames from `start` on that are of the first one's kind, skipping a limited number of other bytes."""
    end, kind, passed = len(content), None, 0
    for _ in range(MOST_FRAMES):
        while passed < MOST_PASSED and 0 <= start < end - 4:
            header = content[start : start + 4]
            size, own = _size(header), (header[1] & 0xFE, header[2] & 0x0C)
            if size and start + size <= end and kind in (None, own):
                yield Frame(start, size, header)
                start, kind = start + size, own
                break
            following = content.find(b"\xff", start + 1)
            passed += following - start
            start = following
        else:
            return


def _size(header: bytes) -> int:
    """Return the size of a layer III frame in bytes; 0 if `header` is not from one, or gives no bit rate."""
    if header[0] != 0xFF or header[1] >> 5 != 7 or header[1] >> 1 & 3 != LAYER3:
        return 0
    version, rate, index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version not in RATES or rate == 3 or index in (0, 15):
        return 0
    samples = 1152 if version == MPEG1 else 576
    return samples // 8 * KILOBITS[version == MPEG1][index] * 1000 // RATES[version][rate] + (header[2] >> 1 & 1)
