"""Teachers: checkpoints whose probabilities become part of the targets of another network (knowledge distillation).

Each teacher classifies each untouched training clip once, before training. Copies of a clip, masked pictures and
pictures in other recording conditions have the answer for the untouched clip, so that the network learns to give under
noise the answer that its teachers give without it.

Source: Hinton et al., Distilling the knowledge in a neural network, arXiv:1503.02531 (2015).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

from spectro.errors import AudioError, TrainingError
from spectro.files import fingerprint, printable, quoted
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import classifier_identity
from spectro.model.metadata import DESCRIPTION_FILE, WEIGHTS_FILE, Description
from spectro.picture import spectrogram
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.train.data import PictureDataModule, PictureDataset
from spectro.train.finish import predict_part
from spectro.train.kept import keep, kept

Booleans = npt.NDArray[np.bool_]

FILE, ANSWERS = "teachers.safetensors", "probabilities"
UNREAD = -1
"""Target of a clip whose recording cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What teachers answer to the clips of a run.

    Args:
        probabilities: their sum over the teachers that can judge a clip, float32 of shape (untouched training clips,
            labels); zeros for a clip that none can judge.
        key: identity of everything that they depend on.
    """

    probabilities: npt.NDArray[np.float32]
    key: str

    def keep(self, folder: Path) -> None:
        """Write the answers to a folder, so that a resumed run has them."""
        keep(folder / FILE, ANSWERS, self.key, self.probabilities)


def check_teachers(teachers: Sequence[Path], data: PictureDataModule, scheme: str) -> None:
    """Check from their descriptions that checkpoints can teach.

    Args:
        teachers: checkpoint folders.
        data: the clips that they are asked about.
        scheme: the label scheme of the run.

    Raises:
        TrainingError: one is no checkpoint, has labels of another scheme, or fewer than two labels of a corpus.
        CheckpointError: the description of one is damaged.
    """
    for folder in teachers:
        if not all((folder / name).is_file() for name in (DESCRIPTION_FILE, WEIGHTS_FILE)):
            raise TrainingError(
                f"{printable(folder)}: holds no checkpoint that can teach ({DESCRIPTION_FILE} and {WEIGHTS_FILE}); "
                "name folders that finetune made as teachers"
            )
        about = Description.read(folder)
        if about.data is not None and about.data.scheme != scheme:
            raise TrainingError(
                f"{printable(folder)}: its label scheme is {quoted(about.data.scheme)}, that of this run {scheme}; "
                "name another teacher, or other --labels"
            )
        known = _known(about, data)
        for group in sorted(set(data.untouched["group"])):
            if known[group].sum() < 2:
                raise TrainingError(
                    f"{printable(folder)}: has {known[group].sum()} of the labels of {data.corpora[group]}, and a "
                    f"teacher needs two or more; name another teacher, or leave {data.corpora[group]} out of --index"
                )


def ask(teachers: Sequence[Path], data: PictureDataModule, folder: Path, *, resumed: bool = False) -> Answers:
    """Return what teachers answer to the untouched training clips, from the run's folder if it has these answers.

    A teacher's probabilities are at its own temperature, and limited to the labels that both the clip's corpus and the
    teacher have. Those of several teachers are added. A teacher does not count for a clip whose recording it cannot
    read, or whose label it lacks.

    Args:
        teachers: checkpoint folders.
        data: the clips.
        folder: the folder that an earlier start of the run may have left answers in.
        resumed: whether training goes on from an earlier start. Otherwise answers are not used if recordings could not
            be read then: they may be back.

    Raises:
        CheckpointError: a teacher is damaged.
        ImageError: a picture of the rendering is damaged.
        TrainingError: a teacher's answers are not finite, or it can read none of the recordings.
    """
    clips = data.untouched["clip_id"].tolist()
    identities = [classifier_identity(str(teacher)) for teacher in teachers]
    whole = fingerprint([identities, data.spec.fingerprint, data.identity, list(data.labels), clips])
    partial = fingerprint([whole, "some recordings cannot be read"])
    for key in (whole, partial) if resumed else (whole,):
        found = kept(folder / FILE, ANSWERS, key)
        if found is not None:
            break
    else:
        asked = [_answers(teacher, data) for teacher in teachers]
        found = np.sum([answers for answers, _unread in asked], axis=0).astype(np.float32)
        key = partial if any(unread.any() for _answers, unread in asked) else whole
    if alone := len(found) - int(found.any(axis=1).sum()):
        rank_zero_only(print)(
            f"{alone} of {len(found)} training clips keep their label alone: no teacher can read their recording, or "
            "has their label",
            file=sys.stderr,
        )
    return Answers(probabilities=found, key=key)


def _answers(folder: Path, data: PictureDataModule) -> tuple[npt.NDArray[np.float64], Booleans]:
    """Return a teacher's probabilities, float64 of shape (clips, labels), and which recordings it cannot read.

    The probabilities are zeros for a clip that it cannot judge.
    """
    teacher, rows = checkpoints.load(folder), data.untouched
    about, known = teacher.about, _known(teacher.about, data)
    same = about.spec.fingerprint == data.spec.fingerprint
    pictures = PictureDataset(rows, data.spec) if same else Recordings(rows, about.spec)
    loader = tqdm(data.loader(pictures, persistent_workers=False), desc=f"teacher {folder.name}", unit="batch")
    equal = _equal(about, data)
    asked = torch.from_numpy((known[:, None] & equal).any(axis=2))
    logits, targets, groups = (found.numpy() for found in predict_part(teacher.net, loader, asked))
    found: npt.NDArray[np.float64] = about.probabilities(logits) @ equal
    unread = targets == UNREAD
    if unread.all():
        raise TrainingError(
            f"{printable(folder)}: cannot teach, because none of the {len(rows)} recordings can be read, such as "
            f"{printable(rows['path'].iloc[0])}; it reads pictures of another spec, rendered from the recordings: put "
            "them back, or render again from where they are"
        )
    found[unread | ~known[groups, targets]] = 0
    return found, unread


def _equal(about: Description, data: PictureDataModule) -> Booleans:
    """Return which labels of a teacher are which labels of a run, bool of shape (teacher's labels, run's labels)."""
    return np.array([[own == label for label in data.labels] for own in about.labels])


def _known(about: Description, data: PictureDataModule) -> Booleans:
    """Return which labels both a corpus and a teacher have, bool of shape (corpora, labels)."""
    known: Booleans = data.possible().numpy() & _equal(about, data).any(axis=0)
    return known


class Recordings(PictureDataset):
    """Pictures of clips, rendered from their recordings with another spec than that of the rendering.

    A clip whose recording cannot be read has a black picture, and the target `UNREAD`.

    Args:
        rows: rows of the image index with the columns `path`, `image`, `target` and `group`.
        spec: the spec to render with.
    """

    def __init__(self, rows: pd.DataFrame, spec: SpectrogramSpec) -> None:
        super().__init__(rows, spec)
        self._paths = rows["path"].tolist()
        self._targets = self._targets.copy()

    def _picture(self, row: int) -> Image:
        try:
            samples = spectrogram.read(self._paths[row], self._spec, max_duration_s=None)
        except AudioError:
            self._targets[row] = UNREAD
            return np.zeros(self._spec.shape, np.uint8)
        return spectrogram.render(samples, self._spec)
