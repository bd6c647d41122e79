"""Make augmented copies of a waveform.

`sample` first draws the steps of a copy and their parameters, then `apply` applies them, so that an augmentation can be
recorded and repeated. Time stretching and pitch shifting use librosa's phase vocoder, resampling uses soxr; the other
steps are one line of arithmetic each.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import soxr

from spectro.audio.compiled import ensure_cache
from spectro.audio.recording import Waveform
from spectro.errors import AugmentationError
from spectro.schema import check_least

Range: TypeAlias = tuple[float, float]
Step: TypeAlias = Callable[[Waveform, int, float, np.random.Generator], Waveform]


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Steps that a copy may get, and their strength: ranges to draw from uniformly, or null for never.

    Args:
        probability: probability of each step, 0 to 1; a copy that would get no step gets one.
        stretch_rate: speed without change of pitch, as a factor; 1 changes nothing.
        pitch_semitones: pitch without change of speed, in semitones.
        speed_rate: speed and pitch together, as on a tape, as a factor; 1 changes nothing.
        shift_share: shift in time, as a share of the clip; the gap is filled with zeros.
        gain_db: change of loudness, in dB.
        snr_db: signal-to-noise ratio of added white Gaussian noise, in dB.
        seed: random seed of all copies.
    """

    probability: float = 0.5
    stretch_rate: Range | None = (0.85, 1.2)
    pitch_semitones: Range | None = (-2.0, 2.0)
    speed_rate: Range | None = (0.95, 1.05)
    shift_share: Range | None = (-0.05, 0.05)
    gain_db: Range | None = (-6.0, 6.0)
    snr_db: Range | None = (15.0, 40.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise AugmentationError(f"probability is {self.probability}; it must lie between 0 and 1")
        check_least(self, AugmentationError, seed=0)
        for name in STEPS:
            chosen: Range | None = getattr(self, name)
            if chosen is not None and not chosen[0] <= chosen[1]:
                raise AugmentationError(f"{name} is {chosen}; give the lower bound first")
            if chosen is not None and name.endswith("_rate") and chosen[0] <= 0:
                raise AugmentationError(f"{name} is {chosen}; a rate must be positive")
        if self.shift_share is not None and not -1 < self.shift_share[0] <= self.shift_share[1] < 1:
            raise AugmentationError(f"shift_share is {self.shift_share}; it must lie between -1 and 1")
        if all(getattr(self, name) is None for name in STEPS):
            raise AugmentationError(
                "every step is null, so copies cannot be altered; enable a step, or render with copies 0"
            )


@dataclass(frozen=True)
class Augmentation:
    """The steps applied to one copy.

    Args:
        parameters: step name -> value, in the order of application; units as in `AugmentSettings`.
        seed: words that seed the noise.
    """

    parameters: dict[str, float]
    seed: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """Step names joined with `+`, such as `pitch_semitones+snr_db`."""
        return "+".join(self.parameters)

    def to_json(self) -> str:
        """Return the parameters as one line of JSON."""
        return json.dumps(self.parameters)


def sample(settings: AugmentSettings, clip_id: str, copy: int) -> Augmentation:
    """Draw the augmentation of copy number `copy` (1, 2, ...) of a clip; it depends only on the three arguments.

    Args:
        settings: ranges, probability and seed.
        clip_id: the clip's id.
        copy: number of the copy.
    """
    digest = hashlib.sha256(f"{clip_id}\0{copy}".encode()).digest()
    words = (settings.seed, *np.frombuffer(digest[:16], np.uint32).tolist())
    generator = np.random.default_rng(words)
    ranges = {name: getattr(settings, name) for name in STEPS if getattr(settings, name) is not None}
    chosen = [name for name in ranges if generator.random() < settings.probability]
    if not chosen:
        chosen = [str(generator.choice(list(ranges)))]
    return Augmentation({name: round(float(generator.uniform(*ranges[name])), 4) for name in chosen}, words)


def apply(samples: Waveform, sample_rate: int, augmentation: Augmentation) -> Waveform:
    """Return an augmented copy.

    Args:
        samples: float32 array of shape (samples,).
        sample_rate: in Hz.
        augmentation: the steps to apply.

    Returns:
        float32 array of shape (samples of the copy,), all finite.

    Raises:
        AugmentationError: a step is unknown, or its result is empty or not finite.
    """
    generator = np.random.default_rng((*augmentation.seed, 1))
    altered = samples
    for name, value in augmentation.parameters.items():
        if name not in STEPS:
            raise AugmentationError(f"unknown step {name!r}; the steps are {', '.join(STEPS)}")
        altered = STEPS[name](altered, sample_rate, value, generator)
        if not len(altered) or not np.isfinite(altered).all():
            raise AugmentationError(f"{name} = {value} leaves nothing usable of {len(samples)} samples")
    return altered.astype(np.float32, copy=False)


def _stretch(samples: Waveform, sample_rate: int, rate: float, _generator: np.random.Generator) -> Waveform:
    ensure_cache()
    from librosa.effects import time_stretch  # imports numba, which prediction does not need

    stretched: Waveform = time_stretch(samples, rate=rate, n_fft=vocoder_size(sample_rate))
    return stretched


def _shift_pitch(samples: Waveform, sample_rate: int, semitones: float, _generator: np.random.Generator) -> Waveform:
    ensure_cache()
    from librosa.effects import pitch_shift

    shifted: Waveform = pitch_shift(samples, sr=sample_rate, n_steps=semitones, n_fft=vocoder_size(sample_rate))
    return shifted


def vocoder_size(sample_rate: int) -> int:
    """Return the FFT size closest to 64 ms: librosa's default of 2048 suits music, but smears speech at 16 kHz."""
    return int(2 ** round(math.log2(0.064 * sample_rate)))


def _change_speed(samples: Waveform, sample_rate: int, rate: float, _generator: np.random.Generator) -> Waveform:
    changed: Waveform = soxr.resample(samples, sample_rate * rate, sample_rate, quality="HQ")
    return changed


def _shift_time(samples: Waveform, _sample_rate: int, share: float, _generator: np.random.Generator) -> Waveform:
    distance = round(abs(share) * len(samples))
    kept = samples[: len(samples) - distance] if share > 0 else samples[distance:]
    return np.pad(kept, (distance, 0) if share > 0 else (0, distance))


def _change_gain(samples: Waveform, _sample_rate: int, gain_db: float, _generator: np.random.Generator) -> Waveform:
    return samples * np.float32(10 ** (gain_db / 20))


def _add_noise(samples: Waveform, _sample_rate: int, snr_db: float, generator: np.random.Generator) -> Waveform:
    deviation = np.sqrt(np.mean(samples**2, dtype=np.float64)) * 10 ** (-snr_db / 20)
    noise = generator.standard_normal(len(samples), dtype=np.float32)
    return samples + np.float32(deviation) * noise


STEPS: dict[str, Step] = {
    "stretch_rate": _stretch,
    "pitch_semitones": _shift_pitch,
    "speed_rate": _change_speed,
    "shift_share": _shift_time,
    "gain_db": _change_gain,
    "snr_db": _add_noise,
}
"""Steps by the name of their range in `AugmentSettings`, in the order of application."""
