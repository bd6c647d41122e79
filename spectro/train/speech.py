"""Speech told from all other sound by what the trained network's last layer reads: a logistic regression on top of it.

It costs a prediction nothing, since every engine returns what the last layer reads. The bias is so chosen that a
share `REFUSED` of the clips that choose it would be refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from spectro.errors import TrainingError
from spectro.files import printable
from spectro.model.backbones import SpectrogramNet
from spectro.model.metadata import SoundFigures, Sounds, SpeechDetector
from spectro.rendering.index import read_indexes
from spectro.train.conditions import Conditions, ConditionSettings
from spectro.train.data import Draw, PictureDataModule, PictureDataset

Floats = npt.NDArray[np.float64]

REFUSED = 0.003
MOST_OF_A_CORPUS = 1_000
STRENGTH = 0.01
"""Inverse of the regularisation's strength, on features of mean 0 and deviation 1."""
CONDITIONS = ConditionSettings(probability=0.5)
BATCH = 64


def learn(
    net: SpectrogramNet, data: PictureDataModule, folders: Sequence[Path], seed: int
) -> tuple[SpeechDetector, Sounds]:
    """Learn to tell the training clips from sounds in which nobody speaks, as they are and in other conditions.

    Args:
        net: the network, in evaluation mode.
        data: the clips; the validation speakers', or the training clips where there are none, choose the bias.
        folders: renderings of sounds without a voice by the same spec; the class of a sound is its source.
        seed: seed of what is drawn.

    Returns:
        what tells speech, and how well: of each source of sounds the share that passes for speech when
        its own sounds were not learnt from, and of each part of the speakers the share of clips that is refused.

    Raises:
        TrainingError: the sounds were rendered by another spec, or fewer than two sources of them are there.
        RenderError: a folder holds no complete rendering.
    """
    index, spec = read_indexes(folders)
    if spec.fingerprint != data.spec.fingerprint:
        raise TrainingError(
            f"{printable(folders[0])}: the sounds were rendered by spec {spec.fingerprint}, the clips by "
            f"{data.spec.fingerprint}: render the sounds with --spec of the clips"
        )
    sounds = index[index["copy"] == 0].assign(target=0, group=0).reset_index(drop=True)
    sources = sounds["emotion"].to_numpy(dtype=str)
    if len(set(sources)) < 2:
        raise TrainingError(
            f"{printable(folders[0])}: holds sounds of one source; two are needed, as folders, so that it can be told "
            "how well sounds are known that were not learnt from"
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
    scored = {"train": of_speech.plain} | held
    refused = {part: round(float((found.probabilities(own) < 0.5).mean()), 4) for part, own in scored.items()}
    return found, Sounds(sources=answered, refused=refused)


@dataclass(frozen=True)
class _Both:
    """What the last layer reads of pictures as they are, and of the same in other recording conditions."""

    plain: npt.NDArray[np.float32]
    altered: npt.NDArray[np.float32]

    @classmethod
    def of(cls, net: SpectrogramNet, rows: pd.DataFrame, data: PictureDataModule, seed: int) -> "_Both":
        conditions = Conditions(CONDITIONS, data.spec) if data.spec.channels == "gray" else None
        return cls(_embeddings(net, rows, data, None, seed), _embeddings(net, rows, data, conditions, seed))

    def all(self, chosen: npt.NDArray[np.bool_] | slice = slice(None)) -> npt.NDArray[np.float32]:
        return np.concatenate([self.plain[chosen], self.altered[chosen]])


def _untouched(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return untouched clips, at most so many of each corpus."""
    own = rows[rows["copy"] == 0]
    drawn = own.sample(frac=1.0, random_state=seed).groupby("corpus").head(MOST_OF_A_CORPUS)
    return drawn.reset_index(drop=True)


@torch.inference_mode()
def _embeddings(
    net: SpectrogramNet, rows: pd.DataFrame, data: PictureDataModule, conditions: Conditions | None, seed: int
) -> npt.NDArray[np.float32]:
    """Return what the last layer reads, float32 of shape (rows, features)."""
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
