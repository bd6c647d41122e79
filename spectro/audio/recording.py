"""Read a file as a mono float32 waveform at the working rate, and check it."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from spectro.audio.container import check_duration, check_length, known_frames, opened
from spectro.audio.highpass import highpass
from spectro.audio.source import Source, name_of
from spectro.errors import AudioError

Waveform: TypeAlias = npt.NDArray[np.float32]

UNREAD = frozenset([".m4a", ".aac", ".amr", ".wma", ".webm", ".mka"])
"""File endings of recordings that libsndfile does not read: in a folder each one is refused, not skipped."""

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
"""File endings that mark recordings when a folder is searched."""

MAX_VALUE = 1e8  # 16-bit integers saved as floats reach 3e4; squares must stay finite in single precision
SILENT_DB = -65.0
"""Level below which a frame of 20 ms is silent, in dBFS."""
FRAME_S = 0.02
CANCELLED = 0.1  # share of the power that the mean of unrelated channels would have
DEFAULT_MAX_DURATION_S = 60.0
BLOCK_VALUES = 2**24  # samples, over all channels, decoded at a time: 64 MiB
TRIM_WINDOW_S, TRIM_HOP_S = 0.032, 0.008


def read(
    source: Source,
    *,
    sample_rate: int,
    trim_db: float | None = None,
    min_duration_s: float = 0.0,
    max_duration_s: float | None = DEFAULT_MAX_DURATION_S,
) -> Waveform:
    """Read a recording as mono at `sample_rate`.

    Channels are averaged (see `Downmix`), soxr resamples at its high quality, and frequencies below the voice are
    removed (see `highpass`). All formats of libsndfile are read: WAV (8, 16, 24, 32 bit and float), FLAC, OGG, Opus,
    MP3, AIFF, AU, CAF, ... A file without a known length is read to its end.

    Args:
        source: a path, an address, or a seekable binary file.
        sample_rate: target sampling rate, in Hz.
        trim_db: cut leading and trailing parts this many dB below the loudest frame; None keeps everything.
        min_duration_s: shortest duration accepted after trimming, in seconds.
        max_duration_s: longest duration accepted before trimming, in seconds; None for no limit.

    Returns:
        float32 array of shape (samples,), full scale at -1 and 1, never empty, all finite.

    Raises:
        AudioError: the file is missing, not audio, truncated, empty, silent, shorter or longer than allowed, holds
            values that are not finite, or its header gives an impossible sampling rate.
    """
    samples, _first = read_from(
        source,
        sample_rate=sample_rate,
        trim_db=trim_db,
        min_duration_s=min_duration_s,
        max_duration_s=max_duration_s,
    )
    return samples


def read_from(
    source: Source,
    *,
    sample_rate: int,
    trim_db: float | None,
    min_duration_s: float,
    max_duration_s: float | None,
) -> tuple[Waveform, int]:
    """Read a recording as `read` does; return its samples, and how many samples were trimmed before them."""
    name = name_of(source)
    if max_duration_s is not None and math.isinf(max_duration_s):
        max_duration_s = None
    samples, file_rate = _decode(source, name, max_duration_s)
    check_values(samples, name)
    if file_rate != sample_rate:
        samples = soxr.resample(samples, file_rate, sample_rate, quality="HQ")
    samples = highpass(samples, sample_rate)
    if not is_audible(samples, sample_rate):
        raise AudioError(f"{name}: is silent (nothing in it is louder than {SILENT_DB:g} dBFS)")
    start, stop = 0, len(samples)
    if trim_db is not None:
        start, stop = trim_bounds(samples, sample_rate=sample_rate, top_db=trim_db)
    samples = samples[start:stop]
    if len(samples) < max(1, round(min_duration_s * sample_rate)):
        raise AudioError(
            f"{name}: is too short: {len(samples) / sample_rate:.3f} s of sound, at least {min_duration_s:.3f} s needed"
        )
    return samples, start


def check_values(samples: npt.NDArray[np.float32], where: str) -> None:
    """Raise AudioError, its message beginning with `where`, if samples are not finite or too large to square."""
    largest = _peak(samples)
    if not math.isfinite(largest):
        raise AudioError(f"{where}: holds NaN or infinite samples; export it again from its source")
    if largest > MAX_VALUE:
        raise AudioError(f"{where}: holds samples of {largest:.0e} times full scale; export it again from its source")


def _peak(samples: npt.NDArray[np.float32]) -> float:
    return float(np.maximum(samples.max(initial=0.0), -samples.min(initial=0.0)))


def is_audible(samples: Waveform, sample_rate: int) -> bool:
    """Return whether any 20 ms of a waveform, float32 of shape (samples,), is louder than `SILENT_DB`."""
    frame = round(FRAME_S * sample_rate)
    if _peak(samples) > 10 ** (SILENT_DB / 20) * math.sqrt(frame):  # that one sample makes its frame loud enough
        return True
    count = len(samples) // frame
    frames = samples[: count * frame].reshape(count, frame) if count else samples[None]
    return bool((frame_levels(frames) > SILENT_DB).any())


def frame_levels(frames: Waveform) -> npt.NDArray[np.float64]:
    """Return the level of each frame about its mean, in dBFS, at least -120; `frames` has shape (frames, samples)."""
    squares = np.einsum("ij,ij->i", frames, frames).astype(np.float64) / frames.shape[1]
    means = frames.mean(axis=1).astype(np.float64)
    levels: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(squares - means**2, 0) + 1e-12)
    return levels


class Downmix:
    """Mixes the channels of consecutive blocks down to one.

    The result is the channels' mean, unless they cancel each other, for example because one has its polarity inverted:
    if the mean has less than a tenth of the power that it would have if they were unrelated, the loudest channel is
    used instead. The decision rests on all sound so far, so that a pause changes nothing.
    """

    def __init__(self) -> None:
        self._powers: npt.NDArray[np.float64] = np.zeros(1)
        self._power = 0.0
        self._chosen: int | None = None

    def add(self, block: Waveform) -> Waveform:
        """Add a block, float32 of shape (samples, channels), and return it as float32 of shape (samples,)."""
        channels = block.shape[1]
        if channels == 1:
            return block[:, 0]
        mean: Waveform = block.mean(axis=1, dtype=np.float32)
        self._powers = self._powers + len(block) * block.var(axis=0, dtype=np.float64)
        self._power += len(block) * float(mean.var(dtype=np.float64))
        if self._power >= CANCELLED * self._powers.sum() / channels**2:
            return mean
        loudest = int(self._powers.argmax())
        if self._chosen is None or self._powers[loudest] > 2 * self._powers[self._chosen]:
            self._chosen = loudest  # and kept, since another one may have the opposite sign
        return np.ascontiguousarray(block[:, self._chosen])


def recordings(root: Path) -> Iterator[Path]:
    """Yield all paths under `root` with the ending of a recording, and folders that cannot be listed.

    Links to folders are followed, once each. A folder that is named like a recording is yielded and also searched.
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


def duration_s(source: Source) -> float:
    """Return a recording's duration in seconds; 0 if it is not a recording.

    The duration comes from the header. If the header does not give it, the recording is read to its end.
    """
    try:
        with opened(source, max_duration_s=None) as file:
            frames = known_frames(file)
            if frames is None:
                frames = 0
                while some := len(read_block(file, BLOCK_VALUES)):
                    frames += some
            return frames / int(file.samplerate)
    except AudioError:
        return 0.0


def trim(samples: Waveform, *, sample_rate: int, top_db: float) -> Waveform:
    """Cut leading and trailing frames whose power is more than `top_db` below that of the loudest frame.

    The frames are 32 ms long, 8 ms apart and centred. The cut points are those of `librosa.effects.trim` with the
    same frame and hop. At least one hop is kept.

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
    """Return the index of the first sample that `trim` keeps, and the index after the last."""
    if not len(samples):
        return 0, 0
    window, hop = round(TRIM_WINDOW_S * sample_rate), round(TRIM_HOP_S * sample_rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, window // 2), window)[::hop]
    power = np.einsum("ij,ij->i", frames, frames)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-top_db / 10))
    if not len(loud):
        return 0, len(samples)
    return int(loud[0]) * hop, min(len(samples), (int(loud[-1]) + 1) * hop)


def _decode(source: Source, name: str, max_duration_s: float | None) -> tuple[Waveform, int]:
    """Return one channel as float32 (samples,), and the file's rate in Hz."""
    parts: list[Waveform] = []
    mix = Downmix()
    with opened(source, max_duration_s=max_duration_s) as file:
        rate, frames = int(file.samplerate), known_frames(file)
        most = frames if max_duration_s is None else int(max_duration_s * rate) + 1
        left = min(one for one in (frames, most, sys.maxsize) if one is not None)
        while left > 0 and len(block := read_block(file, left)):
            parts.append(mix.add(block))
            left -= len(block)
        done = sum(map(len, parts))
        check_duration(done, file, name, max_duration_s)
        check_length(done, file, name)
    if not parts:
        raise AudioError(f"{name}: holds no samples")
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts)), rate


def read_block(file: soundfile.SoundFile, frames: int) -> Waveform:
    """Read up to `frames` frames, fewer if many channels would take much memory; float32 (frames, channels)."""
    count = min(frames, BLOCK_VALUES // file.channels)
    if file.subtype == "PCM_16":  # the same values as libsndfile's, in a third of the time
        block: Waveform = np.multiply(file.read(count, dtype="int16", always_2d=True), np.float32(2**-15))
    else:
        block = file.read(count, dtype="float32", always_2d=True)
    return block
