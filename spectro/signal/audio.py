"""A file -> a mono float32 waveform at the working rate, checked."""

import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from spectro.errors import AudioError, AudioFormatError, AudioLengthError
from spectro.files import printable

Waveform: TypeAlias = npt.NDArray[np.float32]
Source: TypeAlias = str | os.PathLike[str] | BinaryIO

UNREAD = frozenset([".m4a", ".aac", ".amr", ".wma", ".webm", ".mka"])
"""Endings of recordings that libsndfile does not read: in a folder they are refused one by one, not passed over."""

SUFFIXES = UNREAD | frozenset(
    [
        ".wav",
        ".wave",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".w64",
        ".rf64",
        ".caf",
        ".voc",
        ".wve",
        ".nist",
        ".sph",
    ]
)
"""File endings that are taken for recordings when a folder is searched."""

MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz; outside of these a header is wrong rather than exotic
MAX_VALUE = 1e8  # 16-bit integers that were saved as floats are 3e4; squares must stay finite in single precision
SILENT_PEAK = 1e-4  # of full scale, -80 dB: three steps of 16-bit audio
DEFAULT_MAX_DURATION_S = 60.0
BLOCK_VALUES = 2**24  # samples, over all channels, that are decoded at a time: 64 MiB
MP3_ROUGHLY = 0.95  # an MP3 that does not tell its length has about as many frames as libsndfile says
TRIM_WINDOW_S, TRIM_HOP_S = 0.032, 0.008
CUT_OFF = {
    r"^\s*(data|SSND|Data Size|riff)\s*: (?P<promised>\d+) \(should be (?P<there>\d+)\)": "bytes of sound",
    r"frame count (?P<there>\d+) does not match value from 'ds64' chunk of (?P<promised>\d+)": "frames",
}
"""What libsndfile notes of a header that promises more than there is: WAV, AIFF, AU, W64 and RF64."""
STREAMED_SIZES = {
    0,
    0x7FFFFFFF,
    0x7FFFFFFF + 1,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
}  # what writers to a pipe put for "not known yet"


def read(
    source: Source,
    *,
    sample_rate: int,
    trim_db: float | None = None,
    min_duration_s: float = 0.0,
    max_duration_s: float | None = DEFAULT_MAX_DURATION_S,
) -> Waveform:
    """Read a recording as mono at `sample_rate`.

    Channels are averaged; the rate is converted by soxr at its high quality. Whatever libsndfile reads is read: WAV
    (8, 16, 24, 32 bit and float), FLAC, OGG, Opus, MP3, AIFF, AU, CAF, ... Ogg and NIST files do not tell how long they
    were, so that one that was cut off is read as far as it goes.

    Args:
        source: a path, or a seekable binary file.
        sample_rate: wanted sampling rate, in Hz.
        trim_db: cut leading and trailing parts that lie this many dB below the loudest frame; None keeps everything.
        min_duration_s: shortest duration accepted after trimming, in seconds.
        max_duration_s: longest duration accepted before trimming, in seconds; None for no limit.

    Returns:
        float32 array of shape (samples,), full scale at -1 and 1, never empty, all finite.

    Raises:
        AudioError: the file is missing, not audio, truncated, empty, silent, shorter or longer than allowed, holds
            values that are not finite, or its header names an impossible sampling rate.
    """
    name = name_of(source)
    if max_duration_s is not None and math.isinf(max_duration_s):
        max_duration_s = None
    samples, file_rate = _decode(source, name, max_duration_s)
    if check_values(samples, name) < SILENT_PEAK:
        raise AudioError(f"{name}: is silent (its peak lies below -80 dB of full scale)")
    if file_rate != sample_rate:
        samples = soxr.resample(samples, file_rate, sample_rate, quality="HQ")
    if trim_db is not None:
        samples = trim(samples, sample_rate=sample_rate, top_db=trim_db)
    if len(samples) < max(1, round(min_duration_s * sample_rate)):
        raise AudioError(
            f"{name}: is too short: {len(samples) / sample_rate:.3f} s of sound, at least {min_duration_s:.3f} s needed"
        )
    return samples


def check_values(samples: npt.NDArray[np.float32], where: str) -> float:
    """Return the peak; raise AudioError, beginning with `where`, if it is not finite, or too large to be squared."""
    largest = float(np.maximum(samples.max(initial=0.0), -samples.min(initial=0.0)))
    if not math.isfinite(largest):
        raise AudioError(f"{where}: holds NaN or infinite samples; export it again from its source")
    if largest > MAX_VALUE:
        raise AudioError(f"{where}: holds samples of {largest:.0e} times full scale; export it again from its source")
    return largest


def recordings(root: Path) -> Iterator[Path]:
    """Yield all under `root` that has the ending of a recording, and folders that cannot be listed.

    Links to folders are followed, once each. A folder that is named like a recording is yielded, and searched too.
    """
    seen: set[tuple[int, int]] = set()
    closed: list[Path] = []
    walk = os.walk(root, followlinks=True, onerror=lambda error: closed.append(Path(str(error.filename))))
    for folder, folders, files in walk:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield path
    yield from closed


def duration_s(source: str | os.PathLike[str]) -> float:
    """Return the duration that a recording's header tells, in seconds; 0 if it tells none."""
    if not Path(source).is_file():  # opening a pipe would wait
        return 0.0
    try:
        return float(soundfile.info(_for_libsndfile(source)).duration)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return 0.0


def _for_libsndfile(source: Source) -> bytes | BinaryIO:
    """Return a path as bytes, so that names that are not UTF-8 are found too."""
    return os.fsencode(source) if isinstance(source, str | os.PathLike) else source


def trim(samples: Waveform, *, sample_rate: int, top_db: float) -> Waveform:
    """Cut leading and trailing frames whose power lies more than `top_db` below the loudest frame's.

    The frames are 32 ms long, 8 ms apart and centred, and the cut falls where `librosa.effects.trim` puts it for
    the same frame and hop. At least one hop is kept.

    Args:
        samples: float32 array of shape (samples,).
        sample_rate: in Hz.
        top_db: threshold below the loudest frame, in dB, positive.

    Returns:
        a view of `samples`, of shape (kept samples,).
    """
    start, stop = trim_bounds(samples, sample_rate=sample_rate, top_db=top_db)
    return samples[start:stop]


def trim_bounds(samples: Waveform, *, sample_rate: int, top_db: float) -> tuple[int, int]:
    """Return the first sample that `trim` keeps, and the first after those."""
    if not len(samples):
        return 0, 0
    window, hop = round(TRIM_WINDOW_S * sample_rate), round(TRIM_HOP_S * sample_rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, window // 2), window)[::hop]
    power = np.einsum("ij,ij->i", frames, frames)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-top_db / 10))
    if not len(loud):
        return 0, len(samples)
    return int(loud[0]) * hop, min(len(samples), (int(loud[-1]) + 1) * hop)


def name_of(source: Source) -> str:
    """Return what errors call a recording."""
    if isinstance(source, str | os.PathLike):
        return printable(source)
    return printable(str(getattr(source, "name", "audio")))


@contextmanager
def opened(source: Source, *, max_duration_s: float | None) -> Iterator[soundfile.SoundFile]:
    """Open a recording whose header has been checked; what libsndfile says while it is read becomes an AudioError.

    Args:
        source: a path, or a seekable binary file.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Raises:
        AudioError: the recording cannot be opened or read, or its header contradicts itself.
    """
    name = name_of(source)
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if path is not None:
        _check_file(path, name)
    try:
        with soundfile.SoundFile(_for_libsndfile(source)) as file:
            _check_header(file, name, max_duration_s)
            yield file
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        if path is not None:
            _check_file(path, name, opens=True)  # libsndfile calls all that the system refuses a "System error"
        reason = re.sub(r"^Error opening .*[>']: ", "", str(error)).rstrip(".") or type(error).__name__
        if path is not None and path.suffix.lower() in UNREAD:
            reason += f"; convert it first: ffmpeg -i {printable(path.name)} {printable(path.stem)}.wav"
        raise AudioFormatError(f"{name}: is not a recording that can be read ({reason})") from error


def _decode(source: Source, name: str, max_duration_s: float | None) -> tuple[Waveform, int]:
    """Return the channels' mean as float32 (samples,), and the file's rate in Hz."""
    parts: list[Waveform] = []
    with opened(source, max_duration_s=max_duration_s) as file:
        rate = int(file.samplerate)
        left = file.frames if max_duration_s is None else int(max_duration_s * rate) + 1
        while left > 0 and len(block := read_block(file, left)):
            parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32))
            left -= len(block)
        done = sum(map(len, parts))
        if done < MP3_ROUGHLY * file.frames < 2**62:  # pipes promise more
            raise AudioFormatError(f"{name}: breaks off after {done / rate:.1f} of {file.frames / rate:.1f} s")
    if not parts:
        raise AudioError(f"{name}: holds no samples")
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts)), rate


def read_block(file: soundfile.SoundFile, frames: int) -> Waveform:
    """Read up to `frames` frames, fewer where many channels would take much memory; float32 (frames, channels)."""
    count = min(frames, BLOCK_VALUES // file.channels)
    if file.subtype == "PCM_16":  # to the same values as libsndfile, in a third of its time
        block: Waveform = np.multiply(file.read(count, dtype="int16", always_2d=True), np.float32(2**-15))
    else:
        block = file.read(count, dtype="float32", always_2d=True)
    return block


def _check_file(path: Path, name: str, *, opens: bool = False) -> None:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            next(path.iterdir(), None)  # fails where it may not be listed
            raise AudioError(f"{name}: is a folder, not a recording")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{name}: is not a regular file")
        if status.st_size == 0:
            raise AudioError(f"{name}: is empty (0 bytes)")
        if opens:
            path.open("rb").close()
    except (OSError, ValueError) as error:
        broken_link = isinstance(error, FileNotFoundError) and path.is_symlink()
        reason = "broken link" if broken_link else getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{name}: cannot be opened ({reason})") from error


def _check_header(file: soundfile.SoundFile, name: str, max_duration_s: float | None) -> None:
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise AudioError(
            f"{name}: its header says {file.samplerate} Hz; speech needs a sampling rate of {MIN_RATE} to {MAX_RATE} Hz"
        )
    if max_duration_s is not None and file.frames > max_duration_s * file.samplerate:
        raise AudioLengthError(
            f"{name}: lasts {file.frames / file.samplerate:.1f} s, more than the limit of {max_duration_s:g} s; "
            "cut it into clips, raise the limit, or see its course with `spectro timeline`"
        )
    for pattern, unit in CUT_OFF.items():
        sizes = re.search(pattern, file.extra_info, re.MULTILINE)
        promised, there = (int(sizes["promised"]), int(sizes["there"])) if sizes else (0, 0)
        if promised > there and promised not in STREAMED_SIZES:
            raise AudioError(f"{name}: is cut off: its header promises {promised} {unit}, it holds {there}")
    if "Seems to be a truncated file" in file.extra_info:
        raise AudioError(f"{name}: is cut off")
