"""A recording's file, opened: what its header says, and what of that is believed.

Writers to a pipe do not know how long the sound will be, and recorders die before they write it down. Where a length
is not known, the sound is read to its end; where a header promises more than there is, the recording is cut off.
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

from spectro.addresses import Address
from spectro.audio.mpeg import xing_frame
from spectro.audio.source import Source, check_file, fetched, name_of, what_it_is
from spectro.errors import AudioError, AudioFormatError, AudioLengthError

MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz; outside of these a header is wrong rather than exotic
UNKNOWN_FRAMES = 2**62  # a FLAC from a pipe has twice as many
UNKNOWN_BYTES = 0x7F00_0000
"""Sizes from here on are what writers to a pipe put for "not known yet"; a WAV that is really as long is read to its
end, however much of it is missing."""
MP3_ROUGHLY = 0.95  # encoders count the frame that tells the number, or do not
CUT_OFF = {
    r"^\s*(data|SSND|Data Size|riff)\s*: (?P<promised>\d+) \(should be (?P<there>\d+)\)": "bytes of sound",
    r"frame count (?P<there>\d+) does not match value from 'ds64' chunk of (?P<promised>\d+)": "frames",
}
"""What libsndfile notes of a header that promises more than there is: WAV, AIFF, AU, W64 and RF64."""


class Recording(soundfile.SoundFile):  # type: ignore[misc]
    """libsndfile's file, read from its begin to its end.

    Between two blocks soundfile seeks to where the file is already, which a FLAC of unknown length cannot do.

    Attributes:
        counted: whether its length was counted here, and is not what its header says.
    """

    counted = False

    def seekable(self) -> bool:
        """Tell that blocks are read one after the other."""
        return False


class Patched(io.RawIOBase):
    """A file of which a part is replaced, without a copy.

    Args:
        content: the file's bytes, or a map of them.
        start: where the replaced part begins.
        length: bytes of it.
        by: what stands there instead.
    """

    def __init__(self, content: bytes | mmap.mmap, start: int, length: int, by: bytes) -> None:
        self._parts = (memoryview(content)[:start], memoryview(by), memoryview(content)[start + length :])
        self._size, self._place = sum(map(len, self._parts)), 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be sought in."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill a buffer as far as the part goes in which the place lies."""
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
    """Open a recording whose header has been checked; what libsndfile says while it is read becomes an AudioError.

    Args:
        source: a path, an address, or a seekable binary file, which is read from its begin.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Raises:
        AudioError: the recording cannot be opened or read, or its header contradicts itself.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(fetched(source)) if isinstance(source, Address) else source
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
            check_file(path, name, opens=True)  # libsndfile calls all that the system refuses a "System error"
        raise AudioFormatError(
            f"{name}: is not a recording that can be read ({what_it_is(source) or _said(error)})"
        ) from error


def known_frames(file: soundfile.SoundFile) -> int | None:
    """Return how many frames a recording's header tells; None if it tells none."""
    return int(file.frames) if file.frames < UNKNOWN_FRAMES else None


def check_length(done: int, file: soundfile.SoundFile, name: str) -> None:
    """Raise AudioFormatError if `done` frames were read, and the header promises more."""
    frames = known_frames(file)
    if frames is None or getattr(file, "counted", False):
        return
    if done < (MP3_ROUGHLY * frames if file.format == "MP3" else frames):
        raise AudioFormatError(
            f"{name}: breaks off after {done / file.samplerate:.1f} of {frames / file.samplerate:.1f} s"
        )


def _open(source: Source) -> Recording:
    """Open a file; one that does not tell its length, though its sound is there, is told it first."""
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
        found = xing_frame(content)  # looks further than the first frame only where that does not tell
        return Patched(content, found[0], 0, found[1]) if found else None
    if file.format in ("WAV", "WAVEX") and not file.frames:
        content = _content(source)
        place = _empty_data(content)
        if place is not None:
            return Patched(content, place, 4, struct.pack("<I", min(len(content) - place - 4, 0xFFFF_FFFE)))
    return None


def _empty_data(content: bytes | mmap.mmap) -> int | None:
    """Return where a WAV says that its sound takes no bytes, if it does and some follow."""
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
        return source.getvalue()  # its own memory, where read() would copy it
    source.seek(0)
    return source.read()


def _for_libsndfile(source: Source) -> bytes | BinaryIO:
    """Return a path as bytes, so that names that are not UTF-8 are found too; a binary file at its begin."""
    if isinstance(source, str | os.PathLike):
        return os.fsencode(source)
    source.seek(0)
    return source


def _said(error: Exception) -> str:
    """Return what libsndfile says of a file, where that is true."""
    said = re.sub(r"^Error opening .*[>']: ", "", str(error)).rstrip(".") or type(error).__name__
    return "its format is not known" if "File does not exist" in said or "Internal" in said else said


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
            raise AudioError(f"{name}: is cut off: its header promises {promised} {unit}, it holds {there}")
    if "Seems to be a truncated file" in file.extra_info:
        raise AudioError(f"{name}: is cut off")


def check_duration(frames: int, file: soundfile.SoundFile, name: str, max_duration_s: float | None) -> None:
    """Raise AudioLengthError if so many frames last longer than allowed."""
    if max_duration_s is not None and frames > max_duration_s * file.samplerate:
        lasts = f"{frames / file.samplerate:.1f} s, more than" if known_frames(file) else "longer than"
        raise AudioLengthError(
            f"{name}: lasts {lasts} the limit of {max_duration_s:g} s; "
            "cut it into clips, raise the limit, or see its course with `spectro timeline`"
        )
