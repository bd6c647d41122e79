"""The definition of a spectrogram picture: everything between waveform and pixel."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from spectro.errors import SpecError
from spectro.files import fingerprint, printable, quoted, read_foreign_json
from spectro.identity import identity_of, restored
from spectro.picture.mel import MelScale, filterbank

Image: TypeAlias = npt.NDArray[np.uint8]

CHOICES = {
    "scale": ("full_scale", "clip_peak", "clip_norm"),
    "channels": ("gray", "colormap", "deltas", "windows"),
    "placement": ("center", "start"),
    "window": ("hann", "hann_symmetric"),
    "spectrum": ("power", "magnitude"),
    "mel": ("slaney", "htk", "kaldi"),
}
BOUNDS = {
    "sample_rate": (4_000, 768_000),
    "n_fft": (32, 65_536),
    "win_length": (16, 65_536),
    "hop_length": (1, 65_536),
    "height": (1, 2_048),
    "width": (1, 4_096),
}
"""Minimum and maximum of each whole number. With the limits below they keep a spec from taking all memory."""
NUMBERS = ("fmin", "fmax", "low", "high", "preemphasis", "log_offset")
LEVELS = 1_000.0  # dB or standard deviations: `low` and `high` are at most this far from 0
MOST_PIXELS, MOST_SAMPLES, MOST_WEIGHTS = 2**20, 2**22, 2**22  # in a picture, its sound, and its mel filters
SHORTEST_S = 0.05  # of sound in a picture


@dataclass(frozen=True, kw_only=True)
class SpectrogramSpec:
    """The definition of a spectrogram picture: everything between waveform and pixel.

    Two pictures can be compared, and a network can read a picture, only if their specs have the same `fingerprint`.

    Args:
        sample_rate: working sampling rate, in Hz.
        n_fft: size of the Fourier transform, in samples.
        win_length: length of the window, in samples, at most `n_fft`.
        hop_length: distance between frames, in samples; the image shows `width * hop_length` samples.
        height: image height in pixels, equal to the number of mel bands.
        width: image width in pixels, equal to the number of frames.
        fmin: lower edge of the lowest mel band, in Hz.
        fmax: upper edge of the highest mel band, in Hz, at most half of `sample_rate`.
        scale: unit of the gray values. `full_scale`: dB relative to a power of 1 (a full-scale waveform). `clip_peak`:
            dB relative to the clip's loudest mel value. `clip_norm`: standard deviations from the clip's mean log-mel.
        low: value rendered as black, in dB (`full_scale`, `clip_peak`) or in standard deviations (`clip_norm`).
        high: value rendered as white, in the same unit.
        channels: `gray`: one channel. `colormap`: the gray value mapped with a matplotlib colour map. `deltas`: log-mel
            and its first and second differences as R, G, B. `windows`: log-mel with half, one and two times
            `win_length` as R, G, B.
        colormap: name of the matplotlib colour map for `channels="colormap"`.
        trim_db: cut leading and trailing sound this many dB below the loudest frame; null keeps it.
        placement: `center` or `start`: the position of a short clip in the image, and the part of a long clip that is
            shown unless another part has more speech.
        preemphasis: fraction of the previous sample that is subtracted from each sample; 0 for none.
        window: `hann` is periodic, for Fourier analysis; `hann_symmetric` is the form used in filter design.
        spectrum: input of the mel filters: `power` or `magnitude`.
        mel: scale and filters: `slaney` (librosa), `htk` (torchaudio), `kaldi` (Kaldi, TensorFlow); see
            `spectro.picture.mel`.
        log_offset: added to a mel value before the logarithm; 0 floors the value at 1e-10 instead.
        range_db: values more than this many dB below the clip's loudest mel value are raised to that level; null for no
            limit.

    Raises:
        SpecError: the fields contradict each other; the message names them.
    """

    LATER: ClassVar[dict[str, Any]] = {
        "preemphasis": 0.0,
        "window": "hann",
        "spectrum": "power",
        "mel": "slaney",
        "log_offset": 0.0,
        "range_db": None,
    }  # see `spectro.identity`

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
    preemphasis: float = 0.0
    window: Literal["hann", "hann_symmetric"] = "hann"
    spectrum: Literal["power", "magnitude"] = "power"
    mel: MelScale = "slaney"
    log_offset: float = 0.0
    range_db: float | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_sizes()
        if not self.high - self.low >= 0.01:
            raise SpecError(f"low is {self.low} and high is {self.high}; low must lie at least 0.01 below high")
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
        if self.range_db is not None and self.range_db <= 0:
            raise SpecError(f"range_db is {self.range_db}; it must be positive, or null for no limit")
        if not 0 <= self.preemphasis <= 1:
            raise SpecError(f"preemphasis is {self.preemphasis}; it must lie between 0 and 1")
        if not 0 <= self.log_offset <= 1:
            raise SpecError(f"log_offset is {self.log_offset}; it must lie between 0 and 1")
        if self.channels == "colormap":
            colormap_table(self.colormap)
        empty = np.flatnonzero(self.mel_filters.sum(axis=1) == 0)
        if len(empty):
            raise SpecError(
                f"{len(empty)} of {self.height} mel bands hold no FFT bin; raise n_fft ({self.n_fft}) or lower height"
            )

    def _check_kinds(self) -> None:
        """Reject values of the wrong type, numbers that are not finite, and numbers out of bounds."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SpecError(f"{name} is {quoted(getattr(self, name))}; it must be one of {', '.join(allowed)}")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise SpecError(f"{name} is {quoted(value)}; it must be a whole number from {least} to {most}")
        optional = [name for name in ("trim_db", "range_db") if getattr(self, name) is not None]
        for name in (*NUMBERS, *optional):
            value = getattr(self, name)
            limit = LEVELS if name in ("low", "high") else BOUNDS["sample_rate"][1]
            if isinstance(value, bool) or not isinstance(value, int | float) or not -limit <= value <= limit:  # no NaN
                raise SpecError(f"{name} is {quoted(value)}; it must be a number between {-limit:g} and {limit:g}")
        for name in NUMBERS:
            object.__setattr__(self, name, float(getattr(self, name)))  # 8000 and 8000.0 give one fingerprint
        if type(self.colormap) is not str:
            raise SpecError(f"colormap is {quoted(self.colormap)}; it must be the name of a colour map")

    def _check_sizes(self) -> None:
        """Reject settings that would take more memory than any picture of speech needs."""
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
                f"at least {SHORTEST_S:g} s"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change if and only if a field that affects pictures changes."""
        return fingerprint(identity_of(self, () if self.channels == "colormap" else ("colormap",)))

    @property
    def mel_filters(self) -> npt.NDArray[np.float32]:
        """The mel filters, float32 of shape (height, 1 + n_fft // 2)."""
        return filterbank(
            sample_rate=self.sample_rate,
            n_fft=self.n_fft,
            bands=self.height,
            fmin=self.fmin,
            fmax=self.fmax,
            scale=self.mel,
        )

    @property
    def duration_s(self) -> float:
        """Seconds of sound that one image shows."""
        return self.width * self.hop_length / self.sample_rate

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image array: (height, width), or (height, width, 3) with colours."""
        return (self.height, self.width) if self.channels == "gray" else (self.height, self.width, 3)

    @property
    def win_lengths(self) -> tuple[int, ...]:
        """The window lengths in use, in samples."""
        if self.channels != "windows":
            return (self.win_length,)
        return (self.win_length // 2, self.win_length, self.win_length * 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """Create a spec from the result of `to_dict`.

        Raises:
            SpecError: `fields` is not such a result, or a field is unknown or has an invalid value.
        """
        if not isinstance(fields, dict):
            raise SpecError(f"a spec is {quoted(fields)}; it must be a mapping of fields to values")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(map(str, set(fields) - known)):
            shown = ", ".join(quoted(name).strip("'") for name in unknown[:5])
            raise SpecError(f"unknown fields {shown}; the fields of a spec are {', '.join(sorted(known))}")
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
            f"colormap {quoted(name)} is not in matplotlib; choose another, such as magma, viridis or gray"
        ) from error
    return np.ascontiguousarray(table)
