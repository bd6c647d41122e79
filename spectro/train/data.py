"""Batches of rendered pictures of one or several corpora, split by a protocol.

Pictures are read when they are needed; up to `KEPT_BYTES` of them stay in memory for the next epoch. The sampler draws
all random numbers from (seed, epoch), so that an epoch is the same with any number of workers and after a resumption.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from spectro.corpora.labels import label_clips, left_out, tally, votes_for
from spectro.corpora.splits import CROSS_CORPUS, PARTS, Fold, Part, Split, TrainOn, data_fingerprint, everyone, split
from spectro.errors import CorpusError, TrainingError
from spectro.files import fingerprint, printable
from spectro.model.batch_norms import strided
from spectro.model.metadata import label_problem
from spectro.picture import png
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.rendering.index import read_indexes
from spectro.train.conditions import Conditions, ConditionSettings
from spectro.train.masking import Masker, MaskingSettings

Activations: TypeAlias = Sequence[torch.Tensor]
Batch: TypeAlias = tuple[torch.Tensor | Activations, torch.Tensor, torch.Tensor]
Copies: TypeAlias = Literal["one", "all", "none"]
Balance: TypeAlias = Literal["none", "sampling", "loss", "prior"]

MEMORY_SHARE = 0.25
KEPT_BYTES = 2**28


class Draw(NamedTuple):
    """A training picture to load: its row, and the seed of its masking."""

    row: int
    seed: int


class PictureDataset(Dataset[tuple[torch.Tensor | Activations, int | npt.NDArray[np.float32], int]]):
    """Pictures of an index, read one by one.

    Args:
        rows: rows of the image index with the columns `image` (complete paths), `target` and `group`.
        spec: the spec that the pictures must have been rendered with.
        alter: alters pictures that are requested with a seed; None leaves all as they are.
        known: activations that are returned instead of pictures, by image path; None for pictures.
        shares: label distributions that are returned instead of targets, float32 of shape (rows, labels); None for
            targets.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        spec: SpectrogramSpec,
        alter: Callable[[Image, int], Image] | None = None,
        known: dict[str, Activations] | None = None,
        shares: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._spec, self._shares = spec, shares
        # An array of plain bytes: reference counts of Python strings would copy their memory into every worker.
        self._images = np.array([os.fsencode(one) for one in rows["image"]], dtype=bytes)
        self._targets = rows["target"].to_numpy(dtype=np.int64)
        self._groups = rows["group"].to_numpy(dtype=np.int64)
        self._alter, self._known = alter, known
        self._read: dict[int, Image] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, draw: Draw | int) -> tuple[torch.Tensor | Activations, int | npt.NDArray[np.float32], int]:
        """Return a picture, uint8 of shape (channels, height, width), or its activations, with its target and group.

        The target is a label's number, or float32 of shape (labels,): the share of each label. The group is the number
        of its corpus among the corpora of the data.
        """
        row, seed = draw if isinstance(draw, tuple) else (draw, None)
        given = self._given(row, seed)
        target = int(self._targets[row]) if self._shares is None else self._shares[row]
        return given, target, int(self._groups[row])

    def _given(self, row: int, seed: int | None) -> torch.Tensor | Activations:
        if self._known is not None:
            return self._known[os.fsdecode(self._images[row])]
        pixels = self._pixels(row)
        if self._alter is not None and seed is not None:
            pixels = self._alter(pixels, seed)
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.array(planes, order="C"))

    def _pixels(self, row: int) -> Image:
        pixels = self._read.get(row)
        if pixels is None:
            pixels = self._picture(row)
            if (len(self._read) + 1) * pixels.nbytes <= KEPT_BYTES:
                self._read[row] = pixels
        return pixels

    def _picture(self, row: int) -> Image:
        return png.read(Path(os.fsdecode(self._images[row])), self._spec).pixels


class ClipSampler(Sampler[Draw]):
    """Samples an epoch's pictures: the clips, the copy of each, and the seed of its masking.

    Args:
        rows: training rows with the columns `clip_id`, `target` and `group`.
        copies: `one`: every clip once, as one of its copies; `all`: every copy of every clip.
        balanced: draw clips with replacement, so that the labels of each group are equally frequent in it.
        seed: seed of the run.
        first_epoch: number of epochs that a resumed run has completed.
        temperature: draw groups with replacement, in proportion to their number of clips to this power; 1 uses every
            clip once.
        clips: pictures per epoch, drawn with replacement if there are fewer clips; 0 for all.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        copies: Copies,
        balanced: bool,
        seed: int,
        first_epoch: int = 0,
        temperature: float = 1.0,
        clips: int = 0,
    ) -> None:
        found = rows.groupby("clip_id", sort=False).indices
        self._rows_of_clip = [np.asarray(indices) for indices in found.values()]
        self._all_rows = copies == "all"
        firsts = [indices[0] for indices in self._rows_of_clip]
        targets = rows["target"].to_numpy(dtype=np.int64)[firsts]
        groups = rows["group"].to_numpy(dtype=np.int64)[firsts]
        weights = np.bincount(groups)[groups] ** (float(temperature) - 1)
        if balanced:
            pairs, kinds = np.unique(np.stack([groups, targets]), axis=1, return_inverse=True)
            labels = np.bincount(pairs[0])[groups]  # number of labels in the clip's group
            weights *= np.bincount(groups)[groups] / (np.bincount(kinds)[kinds] * labels)
        drawn = balanced or temperature != 1 or clips > len(firsts)
        self._weights = weights / weights.sum() if drawn else None
        self._seed = seed
        self._epoch = self._first_epoch = first_epoch
        self._count = clips or (len(rows) if self._all_rows else len(self._rows_of_clip))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is drawn next.

        Lightning calls this. In a resumed run it first passes 0, and workers draw ahead before it passes the right one.
        """
        self._epoch = max(epoch, self._first_epoch)

    def __len__(self) -> int:
        return self._count // _world_size()

    def __iter__(self) -> Iterator[Draw]:
        generator = np.random.default_rng([self._seed, self._epoch])
        if self._weights is not None:
            clips = generator.choice(len(self._rows_of_clip), self._count, p=self._weights)
            rows = np.array([generator.choice(self._rows_of_clip[clip]) for clip in clips])
        elif self._all_rows:
            rows = generator.permutation(np.concatenate(self._rows_of_clip))[: self._count]
        else:
            rows = generator.permutation([generator.choice(indices) for indices in self._rows_of_clip])[: self._count]
        seeds = generator.integers(0, 2**32, self._count, dtype=np.uint64)
        for place in range(_rank(), len(self) * _world_size(), _world_size()):
            yield Draw(int(rows[place]), int(seeds[place]))


class PictureDataModule(pl.LightningDataModule):
    """Training, validation and test batches of renderings with one spec.

    Batches are `(pictures, targets, groups)`: uint8 of shape (batch, channels, height, width), and twice int64 of shape
    (batch,). A group is the number of a clip's corpus in `corpora`. Validation and test use untouched clips only;
    training uses the clips of its own speakers and their copies.

    Args:
        folders: folders of renderings.
        label_scheme: a name in `corpora.labels.SCHEMES`.
        protocol: a name in `corpora.splits.PROTOCOLS`, `cross-corpus` or `random-leaky`.
        fold: fold of the protocol.
        valid_speakers: validation speakers, instead of the protocol's.
        batch_size: pictures per batch, over all devices.
        copies: `one`: an epoch uses every training clip once, as a randomly drawn copy; `all`: every copy;
            `none`: untouched clips only.
        balance: `sampling`: labels are drawn equally often; `loss`: rare labels have more weight in the loss; `prior`:
            the loss accounts for label frequencies; `none` does nothing.
        masking: how training pictures are masked and warped; None for neither.
        conditions: recording conditions simulated on training pictures, before masking.
        seed: seed of the run.
        workers: processes that read pictures.
        train_on: speakers to train on: `train`, the protocol's training speakers; `valid`, its validation speakers,
            too; `all`, all speakers, whatever the protocol.
        temperature: corpora are sampled in proportion to their number of clips to this power; 1 uses every clip once.
        clips: training pictures per epoch; 0 for one per clip (or copy).
        votes: weight of listeners' votes in the targets of training clips that have votes; their label has the rest.

    Raises:
        RenderError: a folder holds no complete rendering, or one with another spec.
        CorpusError: these clips do not allow the labels, the votes or the split.
    """

    def __init__(
        self,
        *folders: Path,
        label_scheme: str = "emotion",
        protocol: str = "group-kfold",
        fold: Fold = 0,
        valid_speakers: Sequence[str] = (),
        batch_size: int = 32,
        copies: Copies = "none",
        balance: Balance = "none",
        masking: MaskingSettings | None = None,
        conditions: ConditionSettings = ConditionSettings(),  # noqa: B008  it is frozen
        seed: int = 0,
        workers: int = 0,
        train_on: TrainOn = "train",
        temperature: float = 1.0,
        clips: int = 0,
        votes: float = 0.0,
    ) -> None:
        super().__init__()
        index, self.spec = read_indexes(folders)
        labelled, self.labels = label_clips(index, label_scheme)
        if problem := label_problem(self.labels):
            raise CorpusError(f"{printable(folders[0])}: {problem}, and render again")
        whole = everyone(labelled) if train_on == "all" else split(labelled, protocol, fold, valid_speakers)
        self.split: Split = whole.without_validation() if train_on == "valid" else whole
        if protocol == CROSS_CORPUS:  # a label that only the tested corpus has cannot be trained
            trained = set(labelled["label"][self.split.rows(labelled, "train", copies=False)])
            self.labels = tuple(label for label in self.labels if label in trained)
        self.corpora = tuple(sorted(labelled["corpus"].unique()))
        numbers = {label: number for number, label in enumerate(self.labels)}
        labelled["target"] = [numbers.get(label, -1) for label in labelled["label"]]
        labelled["group"] = [self.corpora.index(corpus) for corpus in labelled["corpus"]]
        self.counts = np.zeros((len(self.corpora), len(self.labels)), np.int64)
        known = labelled[(labelled["copy"] == 0) & (labelled["target"] >= 0)]
        np.add.at(self.counts, (known["group"], known["target"]), 1)
        self.rows: dict[Part, pd.DataFrame] = {part: self._part(labelled, part, copies) for part in PARTS}
        originals = labelled[labelled["copy"] == 0]
        self.untouched = originals[originals["clip_id"].isin(self.rows["train"]["clip_id"])].reset_index(drop=True)
        self.tally = tally(labelled) + left_out(index, labelled)
        self.identity = {"data": data_fingerprint(labelled, self.split)}
        self._votes = votes
        if votes:
            counts = votes_for(self.rows["train"], self.labels)
            if not counts.any():
                raise CorpusError(
                    f"{printable(folders[0])}: no training clip has listeners' votes (columns such as "
                    "votes_angry); set votes to 0"
                )
            self.identity["votes_counted"] = fingerprint(counts.tolist())
        self._temperature, self._clips = temperature, clips
        self._batch_size = batch_size
        self._copies, self._balance = copies, balance
        self._alter: list[Callable[[Image, int], Image]] = (
            [Conditions(conditions, self.spec)] if conditions.probability else []
        )
        self._alter += [Masker(masking, self.spec.height, self.spec.width)] if masking else []
        self._seed, self._workers = seed, workers
        self._known: dict[str, Activations] | None = None
        self._taught: pd.DataFrame | None = None
        self._teacher_share = 0.0
        self._sounds: pd.DataFrame | None = None
        self._tags: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self.first_epoch = 0
        if (pictures := len(self._sampler())) < batch_size:
            raise TrainingError(f"an epoch of {pictures} training pictures does not fill one batch of {batch_size}")

    def _part(self, labelled: pd.DataFrame, part: Part, copies: Copies) -> pd.DataFrame:
        chosen = self.split.rows(labelled, part, copies=part == "train" and copies != "none")
        return labelled[chosen].reset_index(drop=True)

    def learn_from(self, answers: npt.NDArray[np.float32], share: float) -> None:
        """Mix teachers' answers into the targets of training clips.

        Args:
            answers: probabilities of the labels for the clips of `untouched`, of shape (clips, labels), with any sum;
                zeros for a clip without an answer, which keeps its target. Copies of a clip have its answer.
            share: weight of the answers in the targets.
        """
        self._taught, self._teacher_share = pd.DataFrame(answers, index=self.untouched["clip_id"]), share

    def hear(self, sounds: pd.DataFrame, tags: npt.NDArray[np.float32]) -> None:
        """Draw sounds without speech beside the training clips, as if they were a corpus.

        The target of a picture is then the share of each label, all 0 for a sound, followed by the probability of
        speech, 1 for a clip. The group of a sound is the number of corpora.

        Args:
            sounds: rows of image indexes with the columns `clip_id`, `copy` and `image`.
            tags: probability of speech in each sound, float32 of shape (sounds,).
        """
        self._sounds, self._tags = sounds.assign(target=0, group=len(self.corpora)), tags

    def voiceless(self) -> pd.DataFrame:
        """Return the sounds that are trained on and in which probably nobody speaks."""
        return pd.DataFrame() if self._sounds is None else self._sounds[self._tags < 0.5]

    def keep_activations(self, compute: Callable[[torch.Tensor], Activations], epochs: int) -> None:
        """Compute activations of training and validation pictures once, and return them instead of the pictures.

        Pictures are returned as before if the activations take more than a quarter of the free memory or more time
        than all remaining epochs, or if they are not tensors of shape (batch, ...).

        Args:
            compute: takes uint8 pictures of shape (batch, channels, height, width).
            epochs: number of epochs of the whole run.
        """
        rows = pd.concat([self.rows["train"], self.rows["valid"]], ignore_index=True)
        if len(rows) >= (epochs - self.first_epoch) * (len(self._sampler()) + len(self.rows["valid"])):
            return
        loader = self.loader(PictureDataset(rows, self.spec), persistent_workers=False)
        known: dict[str, Activations] = {}
        names = iter(rows["image"])
        for pictures, _targets, _groups in tqdm(loader, desc="frozen layers", unit="batch"):
            results = compute(pictures)
            if not all(isinstance(one, torch.Tensor) and one.shape[:1] == pictures.shape[:1] for one in results):
                return
            found = [tensor.cpu() for tensor in results]
            if not known:
                bytes_each = sum(tensor[:1].nbytes for tensor in found)
                if len(rows) * bytes_each > psutil.virtual_memory().available * MEMORY_SHARE:
                    return
            known |= {name: one for one, name in zip(zip(*found, strict=True), names, strict=False)}
        self._known = known

    def drop_activations(self) -> None:
        """Discard stored activations, and return pictures again."""
        self._known = None

    def class_weights(self) -> torch.Tensor | None:
        """Return float32 weights of shape (labels,) for the loss, with mean 1 over clips; None for equal weights."""
        if self._balance != "loss":
            return None
        counts = self._label_counts()
        weights: npt.NDArray[Any] = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / (counts > 0).sum(), 0.0)
        return torch.tensor(weights, dtype=torch.float32)

    def possible(self) -> torch.Tensor:
        """Return which labels each corpus has, bool of shape (corpora, labels); a single corpus has all of them."""
        return torch.from_numpy((self.counts > 0) | (len(self.corpora) == 1))

    def prior(self) -> torch.Tensor | None:
        """Return the probability of each label in each corpus, float32 of shape (corpora, labels), for the loss.

        With balance `prior` these are the label shares among the corpus's training clips, by labels and votes: what
        teachers answer too often is not taken for frequent. Otherwise 1 for labels that it has and 0 for others. None
        if that changes nothing.
        """
        possible = self.possible()
        if self._balance != "prior":
            return possible.float() if len(self.corpora) > 1 else None
        rows = self.rows["train"]
        counts = np.zeros(self.counts.shape)
        np.add.at(counts, rows["group"].to_numpy(), self._untaught_shares())
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        counts = np.where(possible, np.maximum(counts, 1), 0)  # a label without clips counts as if it had one
        return torch.tensor(counts / total, dtype=torch.float32)

    def shares(self) -> npt.NDArray[np.float32]:
        """Return the target distribution of each training clip, float32 of shape (rows, labels)."""
        shares = self._untaught_shares()
        if self._taught is not None:
            rows = self.rows["train"]
            answers = self._taught.reindex(rows["clip_id"], fill_value=0).to_numpy(np.float64)
            # The loss adds the logarithms of the prior to the logits, or weighs labels by their inverse frequencies. So
            # the answers are multiplied by the prior, or the frequencies: their loss is then smallest where the logits
            # alone give the teachers' probabilities.
            if self._balance == "loss":
                answers = answers * self._label_counts()
            elif (prior := self.prior()) is not None:
                answers = answers * prior.numpy()[rows["group"]]
            _mix(shares, answers, self._teacher_share)
        return shares

    def _untaught_shares(self) -> npt.NDArray[np.float32]:
        """Return the target distributions without teachers: those of labels and votes."""
        rows = self.rows["train"]
        shares = np.eye(len(self.labels), dtype=np.float32)[rows["target"]]
        votes = (
            votes_for(rows, self.labels) * self.possible().numpy()[rows["group"]]
        )  # only for labels that the corpus has
        _mix(shares, votes, self._votes)
        return shares

    def _label_counts(self) -> npt.NDArray[np.int64]:
        return np.bincount(self.rows["train"]["target"], minlength=len(self.labels)).astype(np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """Training batches per epoch; each device processes its share of each batch."""
        return len(self._sampler()) // self._own_batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this device's share of the training batches; an incomplete last batch is dropped."""
        rows, sampler = self._drawn(), self._sampler()
        shares = self.shares() if self._votes or self._taught is not None or self._sounds is not None else None
        if shares is not None and self._sounds is not None:
            spoken = np.concatenate([np.ones(len(shares), np.float32), self._tags])
            shares = np.concatenate([np.pad(shares, ((0, len(self._sounds)), (0, 0))), spoken[:, None]], axis=1)
        dataset = PictureDataset(rows, self.spec, partial(_in_turn, self._alter), self._known, shares)
        return self.loader(dataset, sampler=sampler, drop_last=True, batch_size=self._own_batch)

    def calibration_dataloader(self, pictures: int | None = None, *, sounds: bool = True) -> DataLoader[Any]:
        """Return batches of untouched training clips, and of sounds that are trained on, always in the same order.

        All batches are of nearly the same size, since their statistics count alike.

        Args:
            pictures: number of pictures, drawn from all; None for all.
            sounds: whether sounds are among them.
        """
        rows = self._drawn() if sounds else self.rows["train"]
        untouched = rows[rows["copy"] == 0].sample(frac=1.0, random_state=self._seed)[:pictures]
        dataset = PictureDataset(untouched, self.spec, known=self._known)
        batches = strided(len(untouched), self._batch_size)
        return self.loader(dataset, num_workers=0, persistent_workers=False, batch_sampler=batches, batch_size=1)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return this device's share of the validation batches; on one device in the order of `rows["valid"]`."""
        own = self.rows["valid"].iloc[_rank() :: _world_size()]
        return self.loader(PictureDataset(own, self.spec, known=self._known))

    def whole(self, part: Part) -> DataLoader[Any]:
        """Return all batches of a part, on any device, in the order of `rows[part]`."""
        return self.loader(PictureDataset(self.rows[part], self.spec, known=self._known if part == "valid" else None))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches, in the order of `rows["test"]`."""
        return self.whole("test")

    @property
    def _own_batch(self) -> int:
        """Number of pictures per batch on this device.

        Raises:
            TrainingError: a batch cannot be divided evenly between the devices.
        """
        own, rest = divmod(self._batch_size, _world_size())
        if rest:
            raise TrainingError(
                f"batch_size is {self._batch_size}; {_world_size()} devices need a multiple of their number"
            )
        return own

    def _drawn(self) -> pd.DataFrame:
        """Return the rows that training pictures are drawn from."""
        if self._sounds is None:
            return self.rows["train"]
        return pd.concat([self.rows["train"], self._sounds], ignore_index=True)

    def _sampler(self) -> ClipSampler:
        balanced = self._balance == "sampling"
        rows, first = self._drawn(), self.first_epoch
        return ClipSampler(rows, self._copies, balanced, self._seed, first, self._temperature, self._clips)

    def loader(self, dataset: PictureDataset, **options: Any) -> DataLoader[Any]:
        """Return batches of a dataset, in order; `options` are those of `DataLoader`."""
        defaults: dict[str, Any] = {
            "batch_size": self._batch_size,
            "num_workers": self._workers,
            "persistent_workers": self._workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        return DataLoader(dataset, **(defaults | options))


def _in_turn(steps: Sequence[Callable[[Image, int], Image]], pixels: Image, seed: int) -> Image:
    """Return a picture altered by each step in turn."""
    for step in steps:
        pixels = step(pixels, seed)
    return pixels


def _mix(shares: npt.NDArray[np.float32], given: npt.NDArray[np.float64], weight: float) -> None:
    """Mix what is given for each clip into its target, in place; without anything given, the target stays."""
    total = given.sum(axis=1)
    there = total > 0
    shares[there] = (1 - weight) * shares[there] + weight * given[there] / total[there, None]


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
