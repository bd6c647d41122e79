"""Starting weights with a name: which network they are of, which pictures they read, and where they come from.

A file is fetched or named once (`spectro weights`), checked, converted to timm's names by `spectro.model.convert`, and
kept in the cache. Nothing here imports torch, so that a rendering can name the spec that weights read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from spectro.errors import WeightsError
from spectro.files import cache_folder
from spectro.picture.spec import SpectrogramSpec

DB_OF_LN = 10 / math.log(10)
"""Decibels of power in one unit of the natural logarithm."""
PEAK_DB, MEAN_DB, DEVIATION_DB = 10.0, -31.0, 12.0
"""Loudest value, mean and deviation of a clip of speech in the log-mel of `mn04_as`, in dB: medians over corpora."""
WIDTH = 288
FRONT = (
    *("sample_rate", "n_fft", "win_length", "hop_length", "height", "fmin", "fmax", "channels"),
    *("preemphasis", "window", "spectrum", "mel"),
)
"""The fields of a spec that decide what a row and a column of a picture stand for."""


@dataclass(frozen=True, kw_only=True)
class StartingWeights:
    """Weights that were trained by others, and what must be known to start from them.

    Args:
        name: name on the command line.
        title: what they are, in a line.
        network: name of the backbone that they are of.
        families: other backbone names that stand for it where these weights are named.
        specs: the specs of pictures that they read, by name; the first is the one that they were trained on.
        zero_db: the level, in dB of the log-mel of the first spec, that the network's input shows as 0.
        unit_db: the distance, in dB, that it shows as 1.
        log_offset: what was added to mel values before the logarithm; a level of the clip that is taken away makes it
            another amount for each, so it is asked for of pictures in `full_scale` alone.
        url: where the original file is.
        sha256: SHA-256 of the original file.
        licence: its licence.
        parameters: how many numbers the network has.
    """

    name: str
    title: str
    network: str
    families: tuple[str, ...]
    specs: Mapping[str, SpectrogramSpec]
    zero_db: float
    unit_db: float
    log_offset: float
    url: str
    sha256: str
    licence: str
    parameters: int

    @property
    def path(self) -> Path:
        """Where the converted weights are kept."""
        return cache_folder() / "weights" / f"{self.name}.safetensors"

    @property
    def original(self) -> str:
        """Name of the original file."""
        return PurePosixPath(self.url).name

    def normalisation(self, spec: SpectrogramSpec) -> dict[str, list[float]]:
        """Return mean and standard deviation, as shares of the gray scale, that make the network's input of pictures.

        Raises:
            WeightsError: pictures of this spec are not what the weights read; the text names the command that renders
                those.
        """
        differences = {name: self._wrong(spec, own) for name, own in self.specs.items()}
        if all(differences.values()):
            nearest = min(differences, key=lambda name: len(differences[name]))
            raise WeightsError(
                f"{self.name} reads pictures of another kind ({'; '.join(differences[nearest])}): "
                f"render with --spec {nearest}, and name that rendering with --index"
            )
        span = spec.high - spec.low
        if spec.scale == "clip_norm":
            return {
                "mean": [((self.zero_db - MEAN_DB) / DEVIATION_DB - spec.low) / span],
                "std": [self.unit_db / DEVIATION_DB / span],
            }
        zero = self.zero_db - PEAK_DB if spec.scale == "clip_peak" else self.zero_db
        return {"mean": [(zero - spec.low) / span], "std": [self.unit_db / span]}

    def _wrong(self, spec: SpectrogramSpec, own: SpectrogramSpec) -> list[str]:
        """Return what of a spec is not as in one of `specs`."""
        wanted = {name: getattr(own, name) for name in FRONT}
        if spec.scale == "full_scale":
            wanted["log_offset"] = self.log_offset
        return [
            f"{name} is {getattr(spec, name)!r} instead of {value!r}"
            for name, value in wanted.items()
            if getattr(spec, name) != value
        ]


def _mn04_as_specs() -> dict[str, SpectrogramSpec]:
    """Return the log-mel that EfficientAT's networks were trained on, and the same below 8 kHz, from sound at 16 kHz.

    Of the second the frames, the bins and the bands are the first's, as far as they go. The window's half and the
    pre-emphasis at half the rate change its level by as much in opposite directions, but for up to 3 dB at its top.
    """
    common: dict[str, Any] = {
        "width": WIDTH,
        "fmin": 0.0,
        "preemphasis": 0.97,
        "window": "hann_symmetric",
        "mel": "kaldi",
        "scale": "clip_peak",
        "low": -75.0,
        "high": 0.0,
    }
    bands, top_hz, kept = 128, 15_000.0, 103
    step = 1127 * math.log1p(top_hz / 700) / (bands + 1)
    top_of_kept_hz = 700 * math.expm1(step * (kept + 1) / 1127)
    return {
        "mn04_as": SpectrogramSpec(
            sample_rate=32_000, n_fft=1024, win_length=800, hop_length=320, height=bands, fmax=top_hz, **common
        ),
        "mn04_as-16k": SpectrogramSpec(
            sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, height=kept, fmax=top_of_kept_hz, **common
        ),
    }


PRETRAINED = {
    one.name: one
    for one in (
        StartingWeights(
            name="mn04_as",
            title="EfficientAT's mn04, trained on AudioSet by distillation from transformers (mAP 0.432)",
            network="mn04",
            families=("mobilenet",),
            specs=_mn04_as_specs(),
            zero_db=-4.5 * DB_OF_LN,
            unit_db=5 * DB_OF_LN,
            log_offset=1e-5,
            url="https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt",
            sha256="899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
            licence="MIT",
            parameters=713_248,
        ),
    )
}
"""Starting weights by name."""

SPECS = {name: spec for one in PRETRAINED.values() for name, spec in one.specs.items()}
"""Specs with a name, which `render --spec` takes."""
