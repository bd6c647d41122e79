"""The speech detector: a linear layer on the input of the trained network's last layer.

It is a logistic regression that is fitted once the network is trained (`learn`), or an output that the network was
trained with (`remembered`, see `spectro.train.tags`). It adds no cost to a prediction, since every engine returns the
input of the last layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from spectro.errors import TrainingError
from spectro.files import printable
from spectro.model.backbones import SpectrogramNet
from spectro.model.metadata import SoundFigures, Sounds, SpeechDetector
from spectro.picture.spec import SpectrogramSpec
from spectro.rendering.index import read_indexes
from spectro.train.conditions import Conditions, ConditionSettings
from spectro.train.data import Draw, PictureDataModule, PictureDataset

Floats = npt.NDArray[np.float64]

REFUSED, ANSWERED = 0.003, 0.01
MOST_OF_A_CORPUS = 1_000
STRENGTH = 0.01
"""Inverse of the regularisation's strength, on features of mean 0 and deviation 1."""
CONDITIONS = ConditionSettings(probability=0.5)
BATCH = 64


def read_sounds(folders: Sequence[Path], spec: SpectrogramSpec) -> pd.DataFrame:
    """Return the rows of untouched sounds without speech, whose `emotion` is their source.

    Args:
        folders: renderings of sounds.
        spec: the spec of the clips.

    Raises:
        TrainingError: the sounds were rendered with another spec.
        RenderError: a folder holds no complete rendering.
    """
    index, own = read_indexes(folders)
    if own.fingerprint != spec.fingerprint:
        raise TrainingError(
            f"{printable(folders[0])}: the sounds were rendered with spec {own.fingerprint}, the clips with "
            f"{spec.fingerprint}: render the sounds with the --spec of the clips"
        )
    return index[index["copy"] == 0].assign(target=0, group=0).reset_index(drop=True)


def remembered(
    net: SpectrogramNet, output: nn.Linear, data: PictureDataModule, unheard: Sequence[Path], seed: int
) -> tuple[SpeechDetector, Sounds]:
    """Return the speech detector that a network has in its second output.

    Its bias is set halfway between two levels: the share `REFUSED` of the validation clips lies below the one, the
    share `ANSWERED` of the voiceless sounds that were trained on lies above the other. Where clips and sounds overlap,
    the first level alone counts.

    Args:
        net: the network, in evaluation mode.
        output: the second output.
        data: the clips, and sounds that were trained on; without validation clips, training clips set the bias.
        unheard: renderings of sounds that were not trained on.
        seed: random seed.

    Returns:
        the detector, and its figures: for each source of the unheard sounds, the share that gets an emotion; for each
        part of the speakers, the share of clips that is refused.

    Raises:
        TrainingError, RenderError: as `read_sounds`.
    """
    parts: dict[str, pd.DataFrame] = {part: _untouched(rows, seed) for part, rows in data.rows.items() if len(rows)}
    held = {part: _embeddings(net, rows, data, None, seed) for part, rows in parts.items()}
    weight = output.weight[0].detach().double().numpy()
    lowest = float(np.quantile(held.get("valid", held["train"]).astype(np.float64) @ weight, REFUSED))
    highest, voiceless = lowest, data.voiceless()
    if len(voiceless):
        of_sounds = _embeddings(net, voiceless, data, None, seed).astype(np.float64)
        highest = min(lowest, float(np.quantile(of_sounds @ weight, 1 - ANSWERED)))
    found = SpeechDetector(weight=tuple(map(float, weight)), bias=-(lowest + highest) / 2)
    answered = {}
    if unheard:
        sounds = read_sounds(unheard, data.spec)
        spoken = found.probabilities(_embeddings(net, sounds, data, None, seed)) >= 0.5
        for source, own in sounds.assign(spoken=spoken).groupby("emotion")["spoken"]:
            answered[str(source)] = SoundFigures(sounds=len(own), answered=round(float(own.mean()), 4))
    return found, Sounds(sources=answered, refused=_refused(found, held))


def _refused(detector: SpeechDetector, held: dict[str, npt.NDArray[np.float32]]) -> dict[str, float]:
    """Return the share of clips that is refused, by part, from the inputs of the last layer."""
    return {part: round(float((detector.probabilities(own) < 0.5).mean()), 4) for part, own in held.items()}


def learn(
    net: SpectrogramNet, data: PictureDataModule, folders: Sequence[Path], seed: int
) -> tuple[SpeechDetector, Sounds]:
    """Train a speech detector on the training clips and on sounds without speech, untouched and in other conditions.

    Its bias is set so that the share `REFUSED` of the clips used to set it is refused.

    Args:
        net: the network, in evaluation mode.
        data: the clips; the bias is set on the validation clips, or on the training clips if there are none.
        folders: renderings of sounds without speech with the same spec; the class of a sound is its source.
        seed: random seed.

    Returns:
        the detector, and its figures: for each source of sounds, the share classified as speech by a detector that was
        trained without that source; for each part of the speakers, the share of clips that is refused.

    Raises:
        TrainingError: the sounds were rendered with another spec, or come from fewer than two sources.
        RenderError: a folder holds no complete rendering.
    """
    sounds = read_sounds(folders, data.spec)
    sources = sounds["emotion"].to_numpy(dtype=str)
    if len(set(sources)) < 2:
        raise TrainingError(
            f"{printable(folders[0])}: holds sounds of one source; two are needed, as folders, to measure the "
            "detector on a source that it was not trained on"
        )
    parts = {part: _untouched(rows, seed) for part, rows in data.rows.items()}
    of_sounds = _Both.of(net, sounds, data, seed)
    of_speech = _Both.of(net, parts["train"], data, seed)
    held = {part: _embeddings(net, parts[part], data, None, seed) for part in ("valid", "test") if len(parts[part])}
    choosing = held.get("valid", of_speech.plain)
    found = _fit(of_speech.all(), of_sounds.all(), choosing)
    answered = {}
    for source in sorted(set(sources)):
        own = sources == source
        without = _fit(of_speech.all(), of_sounds.all(~own), choosing)
        passed = float((without.probabilities(of_sounds.plain[own]) >= 0.5).mean())
        answered[source] = SoundFigures(sounds=int(own.sum()), answered=round(passed, 4))
    return found, Sounds(sources=answered, refused=_refused(found, {"train": of_speech.plain} | held))


@dataclass(frozen=True)
class _Both:
    """Inputs of the last layer for pictures as they are, and for the same pictures in other recording conditions."""

    plain: npt.NDArray[np.float32]
    altered: npt.NDArray[np.float32]

    @classmethod
    def of(cls, net: SpectrogramNet, rows: pd.DataFrame, data: PictureDataModule, seed: int) -> "_Both":
        conditions = Conditions(CONDITIONS, data.spec) if data.spec.channels == "gray" else None
        return cls(_embeddings(net, rows, data, None, seed), _embeddings(net, rows, data, conditions, seed))

    def all(self, chosen: npt.NDArray[np.bool_] | slice = slice(None)) -> npt.NDArray[np.float32]:
        return np.concatenate([self.plain[chosen], self.altered[chosen]])


def _untouched(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return untouched clips, at most `MOST_OF_A_CORPUS` of each corpus."""
    own = rows[rows["copy"] == 0]
    drawn = own.sample(frac=1.0, random_state=seed).groupby("corpus").head(MOST_OF_A_CORPUS)
    return drawn.reset_index(drop=True)


@torch.inference_mode()
def _embeddings(
    net: SpectrogramNet, rows: pd.DataFrame, data: PictureDataModule, conditions: Conditions | None, seed: int
) -> npt.NDArray[np.float32]:
    """Return the input of the last layer, float32 of shape (rows, features)."""
    pictures = PictureDataset(rows, data.spec, conditions)
    draws: Any = [Draw(row, seed + row) for row in range(len(rows))]
    loader = tqdm(DataLoader(pictures, sampler=draws, batch_size=BATCH), desc="speech or not", leave=False)
    found: npt.NDArray[np.float32] = torch.cat([net.penultimate(shown) for shown, *_rest in loader]).float().numpy()
    return found


def _fit(
    speech: npt.NDArray[np.float32], sounds: npt.NDArray[np.float32], choosing: npt.NDArray[np.float32]
) -> SpeechDetector:
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([sounds, speech]).astype(np.float64)
    targets = np.repeat([0, 1], [len(sounds), len(speech)])
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    regression = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1_000)
    regression.fit((features - mean) / deviation, targets)
    weight: Floats = regression.coef_[0] / deviation
    bias = -float(np.quantile(choosing.astype(np.float64) @ weight, REFUSED))
    return SpeechDetector(weight=tuple(map(float, weight)), bias=bias)
