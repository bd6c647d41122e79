"""Recording conditions simulated on pictures: another microphone, room, line or noise.

A pixel is a level, so a picture can be converted back to powers, altered as the sound would be, and rendered again, at
a hundredth of the cost of an altered waveform. Each picture has a seed of its own, as in `masking`.

Sources: Ko et al., A study on data augmentation of reverberant speech for robust speech recognition, ICASSP 2017, for
rooms and noise; Polack's model (an exponential decay of power) for the room.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

from spectro.errors import TrainingError
from spectro.picture.frontend import band_of
from spectro.picture.spec import Image, SpectrogramSpec

Floats = npt.NDArray[np.float32]
Range = tuple[float, float]

COLOUR_POINTS = 5
SILENCE_DB = -300.0
NORM_DB = 12.0
"""Assumed standard deviation of a clip's log-mel, in dB, for `clip_norm`, which scales levels by it."""


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """Recording conditions that are simulated on training pictures, and their strength.

    Args:
        probability: probability of each condition, 0 to 1; 0 for none.
        gain_db: change of level, in dB; no effect if the scale normalises the level.
        colour_db: standard deviation of a microphone's response, in dB, at points from the lowest to the highest band.
        low_cut_hz: frequencies below this are removed, in Hz.
        high_cut_hz: frequencies above this are removed, in Hz, as by a telephone line.
        noise_db: level of steady noise, in dB relative to the clip's loudest value.
        noise_slope_db: change of the noise's level from the lowest to the highest band, in dB.
        decay_s: reverberation time of the room (a decay of 60 dB), in seconds.
        room_db: level of the reverberation relative to the direct sound, in dB.
    """

    probability: float = 0.0
    gain_db: Range = (-10.0, 10.0)
    colour_db: float = 4.0
    low_cut_hz: Range = (50.0, 400.0)
    high_cut_hz: Range = (2_800.0, 8_000.0)
    noise_db: Range = (-65.0, -25.0)
    noise_slope_db: Range = (-30.0, 10.0)
    decay_s: Range = (0.15, 1.0)
    room_db: Range = (-15.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise TrainingError(f"conditions.probability is {self.probability}; it must lie between 0 and 1")
        for name in ("gain_db", "low_cut_hz", "high_cut_hz", "noise_db", "noise_slope_db", "decay_s", "room_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise TrainingError(f"conditions.{name} is {low}, {high}; give the lower bound first")
        if self.colour_db < 0 or self.decay_s[0] <= 0 or self.low_cut_hz[0] < 0:
            raise TrainingError("conditions needs colour_db and low_cut_hz of 0 or more, and decay_s above 0")


class Conditions:
    """Alters pictures of one spec.

    Args:
        settings: the conditions.
        spec: the pictures' spec.

    Raises:
        TrainingError: the pixels of this spec are not levels.
    """

    def __init__(self, settings: ConditionSettings, spec: SpectrogramSpec) -> None:
        if spec.channels != "gray":
            raise TrainingError("conditions alter gray pictures, whose pixels are levels: render with channels gray")
        self._settings, self._spec = settings, spec
        unit_db = NORM_DB if spec.scale == "clip_norm" else 2.0 if spec.spectrum == "magnitude" else 1.0
        self._step_db = (spec.high - spec.low) / 255 * unit_db  # a picture's dB of magnitude are two of the sound
        self._top_db = -spec.low * unit_db  # level of the clip's peak above black, for `clip_peak`
        self._hops_per_s = spec.sample_rate / spec.hop_length
        self._places = np.linspace(1, 0, spec.height, dtype=np.float32)  # row 0 shows the highest band

    def __call__(self, pixels: Image, seed: int) -> Image:
        """Return an altered copy.

        Args:
            pixels: uint8 array of shape (height, width).
            seed: 0 to 2**32 - 1; the same seed gives the same copy.
        """
        generator, settings, spec = np.random.default_rng((seed, 1)), self._settings, self._spec
        chosen = generator.random(6) < settings.probability
        sounding = _between(pixels)  # columns beyond a clip's ends are black
        if not chosen.any() or not sounding.any():
            return pixels
        levels = pixels.astype(np.float32) * np.float32(self._step_db)  # dB above black
        peak = float(levels.max())
        powers: Floats = np.power(np.float32(10), levels / 10)
        if chosen[0]:
            powers = self._reverberate(powers, generator)
            sounding = _between(powers > 10 ** (self._step_db / 20))
        if chosen[1]:
            noise = (
                peak
                + generator.uniform(*settings.noise_db)
                + generator.uniform(*settings.noise_slope_db) * self._places
            )
            spread = generator.exponential(size=pixels.shape).astype(np.float32)
            powers = powers + (10 ** (noise[:, None] / 10)).astype(np.float32) * spread * sounding
        levels = 10 * np.log10(powers)
        if chosen[2]:
            points = generator.normal(0, settings.colour_db, COLOUR_POINTS)
            response = np.interp(self._places, np.linspace(0, 1, COLOUR_POINTS), points - points.mean())
            levels += response[:, None].astype(np.float32) * sounding
        for place, (bounds, below) in enumerate(((settings.low_cut_hz, True), (settings.high_cut_hz, False)), start=3):
            if chosen[place]:
                levels[self._lost(generator.uniform(*bounds), below)] = 0 if spec.scale == "clip_norm" else SILENCE_DB
        if chosen[5]:
            levels += np.float32(generator.uniform(*settings.gain_db)) * sounding
        if spec.scale == "clip_peak":
            levels += np.float32(self._top_db - levels.max()) * sounding
        elif spec.scale == "clip_norm":
            levels = self._normed(levels, sounding)
        drawn: Image = np.clip(np.rint(levels / np.float32(self._step_db)), 0, 255).astype(np.uint8)
        return drawn

    def _reverberate(self, powers: Floats, generator: np.random.Generator) -> Floats:
        """Return powers plus a tail that decays exponentially, whose total power is a random share of theirs."""
        fall = 10 ** (-6 / (generator.uniform(*self._settings.decay_s) * self._hops_per_s))
        share = 10 ** (generator.uniform(*self._settings.room_db) / 10)
        tail: Floats = scipy.signal.lfilter([1 - fall], [1, -fall], powers, axis=1).astype(np.float32)
        return powers + np.float32(share) * tail

    def _lost(self, frequency: float, below: bool) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows of a picture below (or above) a frequency in Hz."""
        band = band_of(min(max(frequency, self._spec.fmin), self._spec.fmax), self._spec)
        bands = np.arange(self._spec.height)[::-1]
        return bands < band if below else bands > band

    def _normed(self, levels: Floats, sounding: npt.NDArray[np.bool_]) -> Floats:
        """Return levels whose sounding columns have the mean and the deviation that `clip_norm` gives a clip."""
        own, spec = levels[:, sounding], self._spec
        deviation = 255 * self._step_db / (spec.high - spec.low)
        changed = (levels - own.mean()) / (own.std() or 1) * deviation - spec.low * deviation
        normed: Floats = np.where(sounding, changed, levels).astype(np.float32)
        return normed


def _between(picture: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return a mask of a picture's columns from the first to the last that is not 0."""
    places = np.flatnonzero(picture.any(axis=0))
    between = np.zeros(picture.shape[1], bool)
    if len(places):
        between[places[0] : places[-1] + 1] = True
    return between
