"""A waveform -> a fixed-size uint8 log-mel image, as a SpectrogramSpec says.

The image is as high as there are mel bands and as wide as there are frames: nothing is ever resized. Row 0 is the
highest band, column 0 the earliest frame.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.sparse

from spectro.errors import AudioError, SpecError
from spectro.files import fingerprint, printable, quoted, read_foreign_json
from spectro.identity import identity_of, restored
from spectro.signal import audio
from spectro.signal.audio import DEFAULT_MAX_DURATION_S, FRAME_S, SILENT_DB, Waveform
from spectro.signal.source import Source, name_of
from spectro.signal.stream import LEAST_SOUND_S, active

Image: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float32]

POWER_FLOOR = 1e-10  # the quietest mel power that is told apart, -100 dB; librosa's `amin`
FRAMES_TOGETHER = 64  # transformed at a time; memory of larger arrays is fetched from the system anew each time
AS_GOOD_FRAMES = 5  # of 20 ms: the middle is shown where no other part has this much more sound,
PAUSE_FRAMES = 20  # and where no more than this of it is silence at its ends
DELTA_WIDTH = 9  # frames; librosa's default
DELTA_RANGES = (
    0.05,
    0.02,
)  # of the whole gray scale per frame, and per frame squared: what maps to black and to white
CHOICES = {
    "scale": ("full_scale", "clip_peak", "clip_norm"),
    "channels": ("gray", "colormap", "deltas", "windows"),
    "placement": ("center", "start"),
}
BOUNDS = {
    "sample_rate": (4_000, 768_000),
    "n_fft": (32, 65_536),
    "win_length": (16, 65_536),
    "hop_length": (1, 65_536),
    "height": (1, 2_048),
    "width": (1, 4_096),
}
"""The least and the most of each whole number. With the limits below they keep a spec from taking all memory."""
LEVELS = 1_000.0  # dB or standard deviations: further from 0 no `low` or `high` lies
MOST_PIXELS, MOST_SAMPLES, MOST_WEIGHTS = 2**20, 2**22, 2**22  # of a picture, its sound, and its mel filters
SHORTEST_S = 0.05  # of sound that a picture shows


@dataclass(frozen=True, kw_only=True)
class SpectrogramSpec:
    """What a picture of sound looks like: everything between waveform and pixel.

    Two pictures can be compared, and a network can read a picture, only if their specs have the same `fingerprint`.

    Args:
        sample_rate: working sampling rate, in Hz.
        n_fft: size of the Fourier transform, in samples.
        win_length: length of the Hann window, in samples, at most `n_fft`.
        hop_length: distance between frames, in samples; the image shows `width * hop_length` samples.
        height: image height in pixels, which is the number of mel bands.
        width: image width in pixels, which is the number of frames.
        fmin: lower edge of the lowest mel band, in Hz.
        fmax: upper edge of the highest mel band, in Hz, at most half of `sample_rate`.
        scale: what a gray value means. `full_scale`: dB against a power of 1 (a full-scale waveform). `clip_peak`:
            dB against the clip's loudest mel value. `clip_norm`: standard deviations from the clip's mean log-mel.
        low: what is black, in dB (`full_scale`, `clip_peak`) or in standard deviations (`clip_norm`).
        high: what is white, in the same unit.
        channels: `gray`: one channel. `colormap`: the gray value through a matplotlib colour map. `deltas`: log-mel,
            its first and its second difference as R, G, B. `windows`: log-mel with half, once and twice `win_length`
            as R, G, B.
        colormap: name of the matplotlib colour map for `channels="colormap"`.
        trim_db: cut leading and trailing parts this many dB below the loudest frame; null keeps them.
        placement: where a clip shorter than the image stands, and which part of a longer one shows, unless another has
            more sound: `center`, `start`.

    Raises:
        SpecError: the fields contradict each other; the text names them.
    """

    LATER: ClassVar[dict[str, Any]] = {}  # see `spectro.identity`

    sample_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 640
    hop_length: int = 200
    height: int = 128
    width: int = 224
    fmin: float = 30.0
    fmax: float = 8_000.0
    scale: Literal["full_scale", "clip_peak", "clip_norm"] = "clip_norm"
    low: float = -2.5
    high: float = 2.5
    channels: Literal["gray", "colormap", "deltas", "windows"] = "gray"
    colormap: str = "magma"
    trim_db: float | None = 30.0
    placement: Literal["center", "start"] = "center"

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_sizes()
        if not self.high - self.low >= 0.01:
            raise SpecError(f"low is {self.low} and high is {self.high}; low must lie below high, by 0.01 at least")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise SpecError(
                f"fmin is {self.fmin} Hz and fmax {self.fmax} Hz; 0 <= fmin < fmax <= {self.sample_rate / 2} Hz "
                f"(half of sample_rate) must hold"
            )
        if self.fmax - self.fmin < 1:
            raise SpecError(f"fmin is {self.fmin} Hz and fmax {self.fmax} Hz; they must lie at least 1 Hz apart")
        if self.n_fft % 2:
            raise SpecError(f"n_fft is {self.n_fft}; it must be even")
        if max(self.win_lengths) > self.n_fft:
            raise SpecError(
                f"the longest window is {max(self.win_lengths)} samples; n_fft is {self.n_fft}: raise n_fft"
            )
        if self.trim_db is not None and self.trim_db <= 0:
            raise SpecError(f"trim_db is {self.trim_db}; it must be positive, or null to keep silence")
        if self.channels == "colormap":
            colormap_table(self.colormap)
        empty = np.flatnonzero(mel_filterbank(self).sum(axis=1) == 0)
        if len(empty):
            raise SpecError(
                f"{len(empty)} of {self.height} mel bands hold no FFT bin; raise n_fft ({self.n_fft}) or lower height"
            )

    def _check_kinds(self) -> None:
        """Refuse values of another kind, numbers that are not finite, and numbers out of bounds."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SpecError(f"{name} is {quoted(getattr(self, name))}; it must be one of {', '.join(allowed)}")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise SpecError(f"{name} is {quoted(value)}; it must be a whole number from {least} to {most}")
        for name in ("fmin", "fmax", "low", "high", *([] if self.trim_db is None else ["trim_db"])):
            value = getattr(self, name)
            limit = LEVELS if name in ("low", "high") else BOUNDS["sample_rate"][1]
            if isinstance(value, bool) or not isinstance(value, int | float) or not -limit <= value <= limit:  # nor NaN
                raise SpecError(f"{name} is {quoted(value)}; it must be a number between {-limit:g} and {limit:g}")
        for name in ("fmin", "fmax", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 8000 and 8000.0 are one fingerprint
        if type(self.colormap) is not str:
            raise SpecError(f"colormap is {quoted(self.colormap)}; it must be the name of one")

    def _check_sizes(self) -> None:
        """Refuse what would take more memory than any picture of speech needs."""
        for what, count, most in (
            ("height x width, the pixels of a picture,", self.height * self.width, MOST_PIXELS),
            ("width x hop_length, the samples that it shows,", self.width * self.hop_length, MOST_SAMPLES),
            ("height x n_fft / 2, the weights of its mel filters,", self.height * self.n_fft // 2, MOST_WEIGHTS),
        ):
            if count > most:
                raise SpecError(f"{what} is {count}; it must be at most {most}")
        if self.duration_s < SHORTEST_S:
            raise SpecError(
                f"a picture shows {self.duration_s:g} s (width x hop_length / sample_rate); it must show "
                f"{SHORTEST_S:g} s at least"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when, and only when, a field changes that changes pictures."""
        return fingerprint(identity_of(self, () if self.channels == "colormap" else ("colormap",)))

    @property
    def duration_s(self) -> float:
        """Seconds of sound that one image shows."""
        return self.width * self.hop_length / self.sample_rate

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image array: (height, width), or (height, width, 3) when it has colours."""
        return (self.height, self.width) if self.channels == "gray" else (self.height, self.width, 3)

    @property
    def win_lengths(self) -> tuple[int, ...]:
        """The window lengths that are used, in samples."""
        if self.channels != "windows":
            return (self.win_length,)
        return (self.win_length // 2, self.win_length, self.win_length * 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """Make a spec from `to_dict`'s result.

        Raises:
            SpecError: it is no such result, a field is unknown or has a value that does not fit.
        """
        if not isinstance(fields, dict):
            raise SpecError(f"a spec is {quoted(fields)}; it must be a mapping of fields to values")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(map(str, set(fields) - known)):
            shown = ", ".join(quoted(name).strip("'") for name in unknown[:5])
            raise SpecError(f"unknown fields {shown}; a spec has {', '.join(sorted(known))}")
        return restored(cls, fields)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a spec from a `spec.json`, or from a checkpoint's `spectro.json` (its `spec` entry).

        Raises:
            SpecError: the file cannot be read or holds no spec.
        """
        try:
            content = read_foreign_json(path)
        except (OSError, ValueError) as error:
            raise SpecError(f"{printable(path)}: is not a readable spec ({error}); name another file") from error
        fields = content.get("spec", content) if isinstance(content, dict) else None
        if not isinstance(fields, dict):
            raise SpecError(f"{printable(path)}: holds no spec; expected a spec.json or a checkpoint's spectro.json")
        try:
            return cls.from_dict(fields)
        except SpecError as error:
            raise SpecError(f"{printable(path)}: {error}") from error


def read(source: Source, spec: SpectrogramSpec, *, max_duration_s: float | None = DEFAULT_MAX_DURATION_S) -> Waveform:
    """Read a recording as a spec wants it: its rate, its trimming, at least one window long, with sound in it.

    Args:
        source: a path, or a seekable binary file.
        spec: how it will be drawn.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Returns:
        float32 array of shape (samples,) at `spec.sample_rate`.

    Raises:
        AudioError: the recording cannot be used.
    """
    return read_from(source, spec, max_duration_s=max_duration_s)[0]


def read_from(source: Source, spec: SpectrogramSpec, *, max_duration_s: float | None) -> tuple[Waveform, int]:
    """Read a recording as `read` does; returns its samples, and how many were trimmed before them."""
    samples, first = audio.read_from(
        source,
        sample_rate=spec.sample_rate,
        trim_db=spec.trim_db,
        min_duration_s=spec.win_length / spec.sample_rate,
        max_duration_s=max_duration_s,
    )
    sound, frame = active(samples, spec.sample_rate)
    heard_s = int(sound.sum()) * frame / spec.sample_rate
    least_s = min(LEAST_SOUND_S, len(samples) / spec.sample_rate / 2)
    if heard_s < least_s - FRAME_S:  # a frame that sound fills in part is not counted
        raise AudioError(
            f"{name_of(source)}: is silent but for {heard_s:.2f} s; at least {LEAST_SOUND_S} s must be louder than "
            f"{SILENT_DB:g} dB of full scale, and stand out from the noise"
        )
    return samples, first


def render(samples: Waveform, spec: SpectrogramSpec) -> Image:
    """Draw the log-mel image of a waveform.

    Args:
        samples: float32 array of shape (samples,) at `spec.sample_rate`, as `audio.read` returns it.
        spec: how to draw.

    Returns:
        uint8 array of shape `spec.shape`. Where the clip does not fill the width, columns are black.
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
    """Return the first sample of a waveform that a picture shows, and the first after those.

    Of a waveform that is longer than the picture, that is the middle (or the begin, as the spec says), unless another
    part holds more sound, as where the middle is a pause: then it is the part with the most sound, of equal ones the
    nearest, cut to its sound. Sound is told from silence as a timeline does it.

    Args:
        samples: float32 of shape (samples,) at `spec.sample_rate`.
        spec: how they will be drawn.
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
    kept = audio.trim_bounds(samples[first:last], sample_rate=spec.sample_rate, top_db=spec.trim_db)
    return first + kept[0], first + kept[1]


def _most(sound: npt.NDArray[np.bool_], start: int, width: int) -> tuple[int, int] | None:
    """Return where the frames with the most sound begin and end, `width` at most; None if those at `start` do well."""
    heard = np.concatenate([[0], np.cumsum(sound)])
    counts = heard[width:] - heard[: len(heard) - width]
    start = min(start, len(counts) - 1)
    if counts[start] >= counts.max() - AS_GOOD_FRAMES and width - np.ptp(_inside(sound, start, width)) <= PAUSE_FRAMES:
        return None
    best = np.flatnonzero(counts == counts.max())
    first, last = _inside(sound, int(best[np.abs(best - start).argmin()]), width)
    return first, last


def _inside(sound: npt.NDArray[np.bool_], start: int, width: int) -> tuple[int, int]:
    """Return the first of `width` frames from `start` on that has sound, and the first after the last that has."""
    places = start + np.flatnonzero(sound[start : start + width])
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (start, start)


def first_column(start: int, stop: int, spec: SpectrogramSpec) -> int:
    """Return which sample stands in the middle of the image's first column; negative where that lies before the sound.

    Args:
        start: the first sample that is shown.
        stop: the first after those.
        spec: how they are drawn.
    """
    frames = 1 + (stop - start) // spec.hop_length
    return start - _before(spec.width - frames, spec) * spec.hop_length


def band_of(frequency: float, spec: SpectrogramSpec) -> float:
    """Return the mel band, from 0 for the lowest, in whose middle a frequency in Hz lies; between two, a fraction."""
    lowest, highest = _hz_to_mel(spec.fmin), _hz_to_mel(spec.fmax)
    return (_hz_to_mel(frequency) - lowest) / (highest - lowest) * (spec.height + 1) - 1


def log_mel(samples: Waveform, spec: SpectrogramSpec, win_length: int | None = None) -> FloatArray:
    """Compute the mel power spectrogram in dB against a power of 1, floored at -100 dB.

    Frames are centred on multiples of the hop, the ends padded with zeros; Slaney's mel scale and area normalisation.
    These are the values of `librosa.feature.melspectrogram` and `librosa.power_to_db(top_db=None)`: within 0.01 dB down
    to 70 dB below the clip's loudest, and within 0.2 dB below that, where single precision ends.

    Args:
        samples: float32 array of shape (samples,).
        spec: how to draw.
        win_length: overrides the spec's window length, in samples.

    Returns:
        float32 array of shape (mel bands, 1 + samples // hop_length), lowest band first.
    """
    window = _window(spec.n_fft, win_length or spec.win_length)
    padded = np.zeros(len(samples) + spec.n_fft, np.float32)
    padded[spec.n_fft // 2 :][: len(samples)] = samples
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft)[:: spec.hop_length]
    mel = np.empty((spec.height, len(frames)), np.float32)
    for start in range(0, len(frames), FRAMES_TOGETHER):
        some = slice(start, start + FRAMES_TOGETHER)
        spectrum = scipy.fft.rfft((frames[some] * window).T, axis=0)
        parts = spectrum.view(np.float32)  # real and imaginary parts in turns: squared and weighted in one piece
        weighted = _sparse_filterbank(spec) @ np.square(parts, out=parts)
        np.add(weighted[:, ::2], weighted[:, 1::2], out=mel[:, some])
    decibels: FloatArray = np.log10(np.maximum(mel, np.float32(POWER_FLOOR), out=mel), out=mel)
    return np.multiply(decibels, 10, out=decibels)


@lru_cache(maxsize=16)
def mel_filterbank(spec: SpectrogramSpec) -> FloatArray:
    """Return Slaney's triangular mel filters, float32 of shape (mel bands, 1 + n_fft // 2), each of unit area.

    Source: M. Slaney, Auditory Toolbox, Technical Report 1998-010; equal to `librosa.filters.mel`.
    """
    edges = _mel_to_hz(np.linspace(_hz_to_mel(spec.fmin), _hz_to_mel(spec.fmax), spec.height + 2))
    bins = np.linspace(0, spec.sample_rate / 2, 1 + spec.n_fft // 2)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    normalised: FloatArray = (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    return normalised


@lru_cache(maxsize=8)
def colormap_table(name: str) -> Image:
    """Return matplotlib's colour map `name` as uint8 of shape (256, 3).

    Raises:
        SpecError: matplotlib has no such map.
    """
    import matplotlib

    try:
        table: Image = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    except KeyError as error:
        raise SpecError(
            f"colormap {quoted(name)} is not one of matplotlib's, such as magma, viridis or gray"
        ) from error
    return np.ascontiguousarray(table)


def _before(missing: int, spec: SpectrogramSpec) -> int:
    """Return how many of the columns that no frame fills stand before the frames."""
    return missing // 2 if spec.placement == "center" else 0


def _scale(decibels: FloatArray, spec: SpectrogramSpec) -> FloatArray:
    """Map log-mel values so that the spec's `low` becomes 0 and its `high` 1, not clipped."""
    values = decibels
    if spec.scale == "clip_peak":
        values = decibels - decibels.max()
    elif spec.scale == "clip_norm":
        deviation = float(decibels.std())
        values = (decibels - decibels.mean()) / (deviation or 1.0)
    return (values - np.float32(spec.low)) / np.float32(spec.high - spec.low)


def _delta(plane: FloatArray, order: Literal[1, 2]) -> FloatArray:
    """Return the local slope (order 1) or curvature (2) along time, 0 mapped to 0.5; librosa's `feature.delta`."""
    width = min(DELTA_WIDTH, plane.shape[1] - 1 + plane.shape[1] % 2)
    if width <= order:
        return np.full_like(plane, 0.5)
    from scipy.signal import savgol_filter  # a second to import, and used here alone

    slope = savgol_filter(plane, width, polyorder=order, deriv=order, axis=1, mode="interp")
    mapped: FloatArray = (0.5 + slope / (2 * DELTA_RANGES[order - 1])).astype(np.float32)
    return mapped


def _quantise(plane: FloatArray) -> Image:
    return np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8)


def _fill(plane: Image, spec: SpectrogramSpec) -> Image:
    """Turn the lowest band downwards and put the frames into the full width."""
    missing = spec.width - plane.shape[1]
    before = _before(missing, spec)
    filled = np.zeros((spec.height, spec.width), np.uint8)
    filled[:, before : before + plane.shape[1]] = plane[::-1]
    return filled


@lru_cache(maxsize=16)
def _window(n_fft: int, win_length: int) -> FloatArray:
    """Return a periodic Hann window of `win_length` in the middle of `n_fft` zeros."""
    before = (n_fft - win_length) // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi / win_length * np.arange(win_length))
    padded: FloatArray = np.pad(window.astype(np.float32), (before, n_fft - win_length - before))
    return padded


@lru_cache(maxsize=16)
def _sparse_filterbank(spec: SpectrogramSpec) -> scipy.sparse.csr_array:
    """A band touches few bins: the sparse product is more than twice as fast as the dense one."""
    return scipy.sparse.csr_array(mel_filterbank(spec))


def _hz_to_mel(frequency: float) -> float:
    """Slaney's scale: linear to 1 kHz (15 mel), then logarithmic, 27 mel for a factor of 6.4."""
    return 3 * frequency / 200 if frequency < 1000 else 15 + 27 * float(np.log(frequency / 1000) / np.log(6.4))


def _mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logarithmic = 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27)
    return np.where(mel < 15, 200 * mel / 3, logarithmic)
