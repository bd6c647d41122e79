"""Render a recording as a fixed-size uint8 log-mel image, as a SpectrogramSpec defines it.

The image has one row per mel band and one column per frame: nothing is ever resized. Row 0 is the highest band, column
0 the earliest frame.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from spectro.audio import recording
from spectro.audio.recording import DEFAULT_MAX_DURATION_S, FRAME_S, SILENT_DB, Waveform
from spectro.audio.source import Source, name_of
from spectro.audio.stream import LEAST_SOUND_S, active
from spectro.errors import AudioError
from spectro.picture.frontend import FloatArray, log_mel
from spectro.picture.spec import Image, SpectrogramSpec, colormap_table

AS_GOOD_FRAMES = 5  # of 20 ms: the middle is shown if no other part has more than this much extra sound,
PAUSE_FRAMES = 20  # and if its ends have at most this much silence
DELTA_WIDTH = 9  # frames; librosa's default
DELTA_RANGES = (
    0.05,
    0.02,
)  # slope and curvature shown as white (negative: black), in gray scales per frame and per frame squared


def read(source: Source, spec: SpectrogramSpec, *, max_duration_s: float | None = DEFAULT_MAX_DURATION_S) -> Waveform:
    """Read a recording at a spec's rate, trimmed as it sets, at least one window long, and with sound in it.

    Args:
        source: a path, an address, or a seekable binary file.
        spec: how it will be rendered.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Returns:
        float32 array of shape (samples,) at `spec.sample_rate`.

    Raises:
        AudioError: the recording cannot be used.
    """
    return read_from(source, spec, max_duration_s=max_duration_s)[0]


def read_from(source: Source, spec: SpectrogramSpec, *, max_duration_s: float | None) -> tuple[Waveform, int]:
    """Read a recording as `read` does; return its samples, and how many samples were trimmed before them."""
    samples, first = recording.read_from(
        source,
        sample_rate=spec.sample_rate,
        trim_db=spec.trim_db,
        min_duration_s=spec.win_length / spec.sample_rate,
        max_duration_s=max_duration_s,
    )
    sound, frame = active(samples, spec.sample_rate)
    heard_s = int(sound.sum()) * frame / spec.sample_rate
    least_s = min(LEAST_SOUND_S, len(samples) / spec.sample_rate / 2)
    if heard_s < least_s - FRAME_S:  # a frame that is only partly sound is not counted
        raise AudioError(
            f"{name_of(source)}: is silent but for {heard_s:.2f} s; at least {LEAST_SOUND_S} s must be louder than "
            f"{SILENT_DB:g} dBFS, and stand out from the noise"
        )
    return samples, first


def render(samples: Waveform, spec: SpectrogramSpec) -> Image:
    """Render the log-mel image of a waveform.

    Args:
        samples: float32 array of shape (samples,) at `spec.sample_rate`, as `recording.read` returns it.
        spec: how to render.

    Returns:
        uint8 array of shape `spec.shape`. Columns that the clip does not fill are black.
    """
    start, stop = shown(samples, spec)
    planes = [_scale(log_mel(samples[start:stop], spec, win_length), spec) for win_length in spec.win_lengths]
    if spec.channels == "deltas":
        planes += [_delta(planes[0], order) for order in (1, 2)]
    image = np.stack([_fill(_quantise(plane), spec) for plane in planes], axis=-1)
    if spec.channels == "colormap":
        return colormap_table(spec.colormap)[image[..., 0]]
    return image[..., 0] if spec.channels == "gray" else image


def shown(samples: Waveform, spec: SpectrogramSpec) -> tuple[int, int]:
    """Return the index of the first sample of a waveform that a picture shows, and the index after the last.

    Of a waveform longer than the picture, the picture shows the middle (or the start, as the spec sets), unless another
    part has more sound, for example because the middle is a pause. Then it shows the part with the most sound, or the
    nearest of equal parts, cut to its sound. Sound and silence are detected as in a timeline.

    Args:
        samples: float32 of shape (samples,) at `spec.sample_rate`.
        spec: how they will be rendered.
    """
    length = spec.width * spec.hop_length - 1  # samples that give `width` centred frames
    excess = max(0, len(samples) - length)
    start = excess // 2 if spec.placement == "center" else 0
    if excess <= spec.hop_length:
        return start, min(len(samples), start + length)
    sound, frame = active(samples, spec.sample_rate, spec.trim_db)
    found = _most(sound, start // frame, length // frame)
    if found is None or found[0] == found[1]:
        return start, start + length
    first, last = (place * frame for place in found)
    if spec.trim_db is None:
        return first, min(len(samples), first + length)
    kept = recording.trim_bounds(samples[first:last], sample_rate=spec.sample_rate, top_db=spec.trim_db)
    return first + kept[0], first + kept[1]


def _most(sound: npt.NDArray[np.bool_], start: int, width: int) -> tuple[int, int] | None:
    """Return the bounds of the frames with the most sound, at most `width`; None if those at `start` will do."""
    sounding = np.concatenate([[0], np.cumsum(sound)])
    counts = sounding[width:] - sounding[: len(sounding) - width]
    start = min(start, len(counts) - 1)
    if counts[start] >= counts.max() - AS_GOOD_FRAMES and width - np.ptp(_inside(sound, start, width)) <= PAUSE_FRAMES:
        return None
    best = np.flatnonzero(counts == counts.max())
    first, last = _inside(sound, int(best[np.abs(best - start).argmin()]), width)
    return first, last


def _inside(sound: npt.NDArray[np.bool_], start: int, width: int) -> tuple[int, int]:
    """Return the first of `width` frames from `start` on that has sound, and the one after the last that has sound."""
    places = start + np.flatnonzero(sound[start : start + width])
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (start, start)


def first_column(start: int, stop: int, spec: SpectrogramSpec) -> int:
    """Return the index of the sample at the centre of the image's first column; negative if before the sound.

    Args:
        start: index of the first sample shown.
        stop: index after the last sample shown.
        spec: how they are rendered.
    """
    frames = 1 + (stop - start) // spec.hop_length
    return start - _before(spec.width - frames, spec) * spec.hop_length


def _before(missing: int, spec: SpectrogramSpec) -> int:
    """Return how many of the `missing` columns, which no frame fills, come before the frames."""
    return missing // 2 if spec.placement == "center" else 0


def _scale(decibels: FloatArray, spec: SpectrogramSpec) -> FloatArray:
    """Map log-mel values so that the spec's `low` becomes 0 and its `high` 1, without clipping."""
    values = decibels
    if spec.scale == "clip_peak":
        values = decibels - decibels.max()
    elif spec.scale == "clip_norm":
        deviation = float(decibels.std())
        values = (decibels - decibels.mean()) / (deviation or 1.0)
    return (values - np.float32(spec.low)) / np.float32(spec.high - spec.low)


def _delta(plane: FloatArray, order: Literal[1, 2]) -> FloatArray:
    """Return the slope (order 1) or curvature (2) along time as `librosa.feature.delta` does, with 0 mapped to 0.5."""
    width = min(DELTA_WIDTH, plane.shape[1] - 1 + plane.shape[1] % 2)
    if width <= order:
        return np.full_like(plane, 0.5)
    from scipy.signal import savgol_filter  # takes a second to import, and is used only here

    slope = savgol_filter(plane, width, polyorder=order, deriv=order, axis=1, mode="interp")
    mapped: FloatArray = (0.5 + slope / (2 * DELTA_RANGES[order - 1])).astype(np.float32)
    return mapped


def _quantise(plane: FloatArray) -> Image:
    return np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8)


def _fill(plane: Image, spec: SpectrogramSpec) -> Image:
    """Put the lowest band at the bottom, and the frames into the full width."""
    missing = spec.width - plane.shape[1]
    before = _before(missing, spec)
    filled = np.zeros((spec.height, spec.width), np.uint8)
    filled[:, before : before + plane.shape[1]] = plane[::-1]
    return filled
