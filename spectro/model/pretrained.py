"""Named starting weights: their network, the specs of their input pictures, and their source.

A file is fetched or given once (`spectro weights`), checked, converted to timm's names by `spectro.model.convert`, and
kept in the cache. Nothing here imports torch, so that rendering can use the specs by name.
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
WIDTH = 288
FRONT = (
    *("sample_rate", "n_fft", "win_length", "hop_length", "height", "fmin", "fmax", "channels"),
    *("preemphasis", "window", "spectrum", "mel"),
)
"""The fields of a spec that define the meaning of a picture's rows and columns."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Input scale of a network that was trained on sound: levels in dB, 10 log10 of the mel values.

    Args:
        zero_db: the level that is input 0.
        unit_db: the difference in level that is input 1.
        log_offset: offset added to mel values before the logarithm. It is required only of pictures in `full_scale`: a
            scale relative to the clip's level makes it differ from clip to clip.
        peak_db: loudest value of a clip of speech, the median over corpora.
        mean_db: mean of a clip of speech, likewise.
        deviation_db: standard deviation within a clip of speech, likewise.
    """

    zero_db: float
    unit_db: float
    log_offset: float
    peak_db: float
    mean_db: float
    deviation_db: float


@dataclass(frozen=True, kw_only=True)
class StartingWeights:
    """Weights published by others, and the facts needed to start from them.

    Args:
        name: name on the command line.
        title: description in one line.
        network: name of their backbone.
        families: other backbone names that stand for it when these weights are chosen.
        specs: the specs of their input pictures, by name; the first is the one that they were trained on. Weights
            trained on photographs have none, and read all pictures.
        levels: input scale of levels in the first spec; None for photographs.
        photographs: mean and standard deviation of the network's input, as shares of the gray scale, for photographs.
        tags: whether they have AudioSet's output layer.
        folded: whether batch norms only add a bias, so that they need statistics before training.
        url: address of the original file, or of its description.
        sha256: SHA-256 of the original file; empty for a file of a hub, which checks its own files.
        hub: name on the Hugging Face hub, for weights that are fetched from there.
        script: script that makes the file from a published package, for weights that are not fetched automatically.
        licence: its licence.
        parameters: number of parameters of the network.
    """

    name: str
    title: str
    network: str
    families: tuple[str, ...]
    specs: Mapping[str, SpectrogramSpec]
    levels: Levels | None = None
    photographs: tuple[float, float] = (0.5, 0.5)
    tags: bool = False
    folded: bool = False
    url: str
    sha256: str
    licence: str
    parameters: int
    hub: str = ""
    script: str = ""

    @property
    def path(self) -> Path:
        """Path of the converted weights in the cache."""
        return cache_folder() / "weights" / f"{self.name}.safetensors"

    @property
    def original(self) -> str:
        """Name of the original file."""
        return PurePosixPath(self.url).name

    def normalisation(self, spec: SpectrogramSpec) -> dict[str, list[float]]:
        """Return mean and standard deviation, as shares of the gray scale, that normalise pictures to network input.

        Raises:
            WeightsError: the weights do not read pictures of this spec; the text gives the options that render
                suitable ones.
        """
        levels = self.levels
        if levels is None:
            mean, deviation = self.photographs
            return {"mean": [mean] * 3, "std": [deviation] * 3}
        differences = {name: self._wrong(spec, own, levels) for name, own in self.specs.items()}
        if all(differences.values()):
            nearest = min(differences, key=lambda name: len(differences[name]))
            raise WeightsError(
                f"{self.name} reads pictures of another kind ({'; '.join(differences[nearest])}): "
                f"render with --spec {nearest}, and give that rendering as --index"
            )
        span = spec.high - spec.low
        if spec.scale == "clip_norm":
            return {
                "mean": [((levels.zero_db - levels.mean_db) / levels.deviation_db - spec.low) / span],
                "std": [levels.unit_db / levels.deviation_db / span],
            }
        zero = levels.zero_db - levels.peak_db if spec.scale == "clip_peak" else levels.zero_db
        return {"mean": [(zero - spec.low) / span], "std": [levels.unit_db / span]}

    @staticmethod
    def _wrong(spec: SpectrogramSpec, own: SpectrogramSpec, levels: Levels) -> list[str]:
        """Return the differences between a spec and one of `specs`."""
        wanted = {name: getattr(own, name) for name in FRONT}
        if spec.scale == "full_scale":
            wanted["log_offset"] = levels.log_offset
        return [
            f"{name} is {getattr(spec, name)!r} instead of {value!r}"
            for name, value in wanted.items()
            if getattr(spec, name) != value
        ]


def _mn04_as_specs() -> dict[str, SpectrogramSpec]:
    """Return the log-mel that EfficientAT's networks were trained on, and the same below 8 kHz, from sound at 16 kHz.

    The second has the frames, bins and bands of the first, up to its top frequency. Half the window length and
    pre-emphasis at half the rate change its level by equal amounts in opposite directions, except for up to 3 dB at its
    top, and at its bottom, where pre-emphasis flattens: 5 dB less at 30 Hz, 3 dB at 110 Hz, 1.6 dB at 190 Hz.
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


def _yamnet_spec() -> SpectrogramSpec:
    """Return the log-mel that YAMNet was trained on: of magnitudes, so that 1 dB here is 2 dB of power."""
    return SpectrogramSpec(
        sample_rate=16_000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        height=64,
        width=WIDTH,
        fmin=125.0,
        fmax=7_500.0,
        spectrum="magnitude",
        mel="kaldi",
        scale="clip_peak",
        low=-40.0,
        high=0.0,
    )


def _whisper_spec() -> SpectrogramSpec:
    """Return the log-mel that Whisper was trained on, whose range is the 80 dB below a clip's loudest value."""
    return SpectrogramSpec(
        sample_rate=16_000,
        n_fft=400,
        win_length=400,
        hop_length=160,
        height=80,
        width=300,
        fmin=0.0,
        fmax=8_000.0,
        scale="clip_peak",
        low=-80.0,
        high=0.0,
    )


PRETRAINED = {
    one.name: one
    for one in (
        StartingWeights(
            name="mn04_as",
            title="EfficientAT's mn04, trained on AudioSet by distillation from transformers (mAP 0.432)",
            network="mn04",
            families=("mobilenet",),
            specs=_mn04_as_specs(),
            tags=True,
            levels=Levels(
                zero_db=-4.5 * DB_OF_LN,
                unit_db=5 * DB_OF_LN,
                log_offset=1e-5,
                peak_db=10.0,
                mean_db=-31.0,
                deviation_db=12.0,
            ),
            url="https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt",
            sha256="899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
            licence="MIT",
            parameters=713_248,
        ),
        StartingWeights(
            name="yamnet",
            title="Google's YAMNet, a MobileNetV1 trained on AudioSet (mAP 0.306), from 8-bit integers",
            network="yamnet",
            families=("mobilenet",),
            specs={"yamnet": _yamnet_spec()},
            tags=True,
            levels=Levels(
                zero_db=0.0, unit_db=DB_OF_LN, log_offset=1e-3, peak_db=10.6, mean_db=-10.9, deviation_db=6.8
            ),
            folded=True,
            url="https://storage.googleapis.com/tfhub-lite-models/google/lite-model/yamnet/classification/tflite/1.tflite",
            sha256="10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de",
            licence="Apache-2.0",
            parameters=3_206_400,
        ),
        StartingWeights(
            name="whisper_tiny_en",
            title="the encoder of OpenAI's Whisper tiny.en, trained to transcribe English speech",
            network="whisper_tiny",
            families=(),
            specs={"whisper": _whisper_spec()},
            levels=Levels(zero_db=-40.0, unit_db=40.0, log_offset=0.0, peak_db=3.0, mean_db=-46.0, deviation_db=16.0),
            url="https://huggingface.co/openai/whisper-tiny.en/resolve/main/model.safetensors",
            sha256="",
            licence="MIT",
            parameters=8_257_798,
            hub="openai/whisper-tiny.en",
        ),
        StartingWeights(
            name="mobilenetv2_tflite",
            title="Google's MobileNetV2, trained on ImageNet's photographs, from 8-bit integers",
            network="mobilenetv2_100",
            families=("mobilenet",),
            specs={},
            folded=True,
            url="https://github.com/google-coral/test_data/raw/master/tf2_mobilenet_v2_1.0_224_ptq.tflite",
            sha256="5d3137241276e79c86d14a74fe43581398ae0e815191d3dba45495b810840e8c",
            licence="Apache-2.0",
            parameters=2_223_872,
        ),
        StartingWeights(
            name="inceptionv3_tfjs",
            title=(
                "an InceptionV3 from 8-bit integers: 51 of its 94 convolutions are ImageNet's, the rest was fine-tuned "
                "on photographs of another task"
            ),
            network="inception_v3",
            families=("inceptionv3",),
            specs={},
            photographs=(0.0, 1.0),
            url="https://github.com/infinitered/nsfwjs",
            sha256="",
            licence="MIT",
            parameters=21_785_568,
            script="inceptionv3_from_tfjs.py",
        ),
    )
}
"""Starting weights by name."""

SPECS = {name: spec for one in PRETRAINED.values() for name, spec in one.specs.items()}
"""Named specs, which `render --spec` accepts."""
