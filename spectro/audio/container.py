"""Open a recording's file, and decide which parts of its header to trust.

A writer to a pipe does not know the final length, and a recorder may die before it writes the length down. If the
length is unknown, the sound is read to its end. If a header promises more than the file holds, the recording is cut
off.
"""

import io
import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import soundfile

from spectro.addresses import Address, place
from spectro.audio.mpeg import xing_frame
from spectro.audio.source import Source, check_file, fetched, name_of, what_it_is
from spectro.errors import AudioError, AudioFormatError, AudioLengthError

MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz; outside this range a header is wrong rather than exotic
UNKNOWN_FRAMES = 2**62  # a FLAC written to a pipe reports twice this
UNKNOWN_BYTES = 0x7F00_0000
"""Writers to a pipe give sizes from here up for "not known yet". A WAV that really is this long is read to its end,
however much of it is missing."""
MP3_ROUGHLY = 0.95  # an encoder may or may not count the frame that holds the count
CUT_OFF = {
    r"^\s*(data|SSND|Data Size|riff)\s*: (?P<promised>\d+) \(should be (?P<there>\d+)\)": "bytes of sound",
    r"frame count (?P<there>\d+) does not match value from 'ds64' chunk of (?P<promised>\d+)": "frames",
}
"""libsndfile's log lines for a header that promises more than the file holds: WAV, AIFF, AU, W64 and RF64."""


class Recording(soundfile.SoundFile):  # type: ignore[misc]
    """A libsndfile file, read from beginning to end.

    Between two blocks soundfile seeks to the current position, which a FLAC of unknown length does not support.

    Attributes:
        counted: whether the length was counted here, not taken from the header.
    """

    counted = False

    def seekable(self) -> bool:
        """Return False: blocks are read in order."""
        return False


class Patched(io.RawIOBase):
    """A file with one part replaced, without a copy.

    Args:
        content: the file's bytes, or a memory map of them.
        start: offset of the replaced part.
        length: length of the replaced part, in bytes.
        by: the bytes that replace it.
    """

    def __init__(self, content: bytes | mmap.mmap, start: int, length: int, by: bytes) -> None:
        self._parts = (memoryview(content)[:start], memoryview(by), memoryview(content)[start + length :])
        self._size, self._place = sum(map(len, self._parts)), 0

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: the file is seekable."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the current position."""
        return self._place

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill a buffer from the current position, at most to the end of its part; return the number of bytes."""
        first = 0
        for part in self._parts:
            within = self._place - first
            if 0 <= within < len(part):
                some = part[within : within + len(buffer)]
                buffer[: len(some)] = some
                self._place += len(some)
                return len(some)
            first += len(part)
        return 0


@contextmanager
def opened(source: Source, *, max_duration_s: float | None) -> Iterator[soundfile.SoundFile]:
    """Open a recording and check its header; libsndfile's errors while it is read become an AudioError.

    Args:
        source: a path, an address (or its text), or a seekable binary file, which is read from its start.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Raises:
        AudioError: the recording cannot be opened or read, or its header contradicts itself.
    """
    with ExitStack() as stack:
        where = place(source) if isinstance(source, str | os.PathLike) else source
        stream = stack.enter_context(fetched(where)) if isinstance(where, Address) else where
        yield stack.enter_context(_checked(stream, name_of(source), max_duration_s))


@contextmanager
def _checked(source: Source, name: str, max_duration_s: float | None) -> Iterator[soundfile.SoundFile]:
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if path is not None:
        check_file(path, name)
    elif not hasattr(source, "seek"):
        raise AudioError(
            f"{type(source).__name__} is neither a path nor a binary file; wrap the bytes of a recording in io.BytesIO"
        )
    try:
        with _open(source) as file:
            _check_header(file, name, max_duration_s)
            yield file
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        if path is not None:
            check_file(path, name, opens=True)  # libsndfile reports any refusal by the system as a "System error"
        raise AudioFormatError(
            f"{name}: is not a recording that can be read ({what_it_is(source) or _said(error)})"
        ) from error


def known_frames(file: soundfile.SoundFile) -> int | None:
    """Return the number of frames according to a recording's header; None if it gives none."""
    return int(file.frames) if file.frames < UNKNOWN_FRAMES else None


def check_length(done: int, file: soundfile.SoundFile, name: str) -> None:
    """Raise AudioFormatError if the header promises more than the `done` frames that were read."""
    frames = known_frames(file)
    if frames is None or getattr(file, "counted", False):
        return
    if done < (MP3_ROUGHLY * frames if file.format == "MP3" else frames):
        raise AudioFormatError(f"{name}: ends after {done / file.samplerate:.1f} of {frames / file.samplerate:.1f} s")


def _open(source: Source) -> Recording:
    """Open a file; if its header lacks the length of sound that exists, first patch the length in."""
    file = Recording(_for_libsndfile(source))
    try:
        patched = _patched(source, file)
    except BaseException:
        file.close()
        raise
    if patched is None:
        return file
    file.close()
    again = Recording(io.BufferedReader(patched))
    again.counted = True
    return again


def _patched(source: Source, file: soundfile.SoundFile) -> Patched | None:
    if file.format == "MP3":
        content = _content(source)
        found = xing_frame(content)  # reads past the first frame only if that gives no count
        return Patched(content, found[0], 0, found[1]) if found else None
    if file.format in ("WAV", "WAVEX") and not file.frames:
        content = _content(source)
        place = _empty_data(content)
        if place is not None:
            return Patched(content, place, 4, struct.pack("<I", min(len(content) - place - 4, 0xFFFF_FFFE)))
    return None


def _empty_data(content: bytes | mmap.mmap) -> int | None:
    """Return the offset of a WAV's sound size if the size is 0 although bytes follow; None otherwise."""
    place = 12
    while place + 8 < len(content):
        kind, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind == b"data":
            return None if size else place + 4
        place += 8 + size + size % 2
    return None


def _content(source: Source) -> bytes | mmap.mmap:
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if isinstance(source, io.BytesIO):
        return source.getvalue()  # its own buffer; read() would copy it
    source.seek(0)
    return source.read()


def _for_libsndfile(source: Source) -> bytes | BinaryIO:
    """Return a path as bytes, so that names that are not UTF-8 work too, or a binary file at its start."""
    if isinstance(source, str | os.PathLike):
        return os.fsencode(source)
    source.seek(0)
    return source


def _said(error: Exception) -> str:
    """Return libsndfile's error message if it is accurate."""
    said = re.sub(r"^Error opening .*[>']: ", "", str(error)).rstrip(".") or type(error).__name__
    return "unknown format" if "File does not exist" in said or "Internal" in said else said


def _check_header(file: soundfile.SoundFile, name: str, max_duration_s: float | None) -> None:
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise AudioError(
            f"{name}: its header says {file.samplerate} Hz; speech needs a sampling rate of {MIN_RATE} to {MAX_RATE} Hz"
        )
    check_duration(known_frames(file) or 0, file, name, max_duration_s)
    for pattern, unit in CUT_OFF.items():
        sizes = re.search(pattern, file.extra_info, re.MULTILINE)
        promised, there = (int(sizes["promised"]), int(sizes["there"])) if sizes else (0, 0)
        if there < promised < UNKNOWN_BYTES:
            raise AudioError(f"{name}: is cut off: its header promises {promised} {unit}, but the file holds {there}")
    if "Seems to be a truncated file" in file.extra_info:
        raise AudioError(f"{name}: is cut off")


def check_duration(frames: int, file: soundfile.SoundFile, name: str, max_duration_s: float | None) -> None:
    """Raise AudioLengthError if `frames` frames last longer than allowed."""
    if max_duration_s is not None and frames > max_duration_s * file.samplerate:
        lasts = f"{frames / file.samplerate:.1f} s, more than" if known_frames(file) else "longer than"
        raise AudioLengthError(
            f"{name}: lasts {lasts} the limit of {max_duration_s:g} s; "
            "cut it into clips, raise the limit, or run `spectro timeline` on it"
        )
