"""The description of a checkpoint in `spectro.json`: everything but the weights.

The classes below are the file's format. `Description.read` reads it, `checkpoint.save` writes it. Nothing here imports
torch, so an exported network predicts without it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from scipy.special import expit, softmax

from spectro.errors import CheckpointError, SpectroError
from spectro.files import fingerprint, printable, quoted, read_foreign_json
from spectro.picture.spec import SpectrogramSpec
from spectro.schema import Count, Names, Share, Text, plain, typed

if TYPE_CHECKING:
    from spectro.corpora.splits import Split

FORMAT: Literal[2] = 2
FORMATS = (1, FORMAT)
"""The format that is written, and those that are read; 2 adds the norm of the features to the weights."""
WEIGHTS_FILE, EXPORT_FILE = "model.safetensors", "model.onnx"
DESCRIPTION_FILE, CARD_FILE = "spectro.json", "card.md"
RESERVED = ("unsure", "silence", "no speech", "speech")
"""Values of table rows without an emotion, and the name in the column `p_speech`: no label may have these names."""
LONGEST_LABEL = 100
COLDEST, HOTTEST = 0.001, 1_000.0
"""Range of the temperatures that give usable probabilities."""

Dtype = Literal["float32", "float16"]
Channels = Annotated[tuple[Annotated[float, Meta(ge=-100, le=100)], ...], Meta(min_length=1, max_length=3)]
Deviations = Annotated[tuple[Annotated[float, Meta(ge=1e-4, le=100)], ...], Meta(min_length=1, max_length=3)]
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]


class Source(Struct, frozen=True, kw_only=True):
    """A corpus that a network was trained on.

    Args:
        title: full name.
        licence: licence of the recordings.
        homepage: where it is described; empty if nowhere.
    """

    title: Text = ""
    licence: Text = ""
    homepage: Text = ""


class TrainingData(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"scheme": "labels"}):
    """The recordings that a network was trained on.

    Args:
        corpora: names of the corpora.
        scheme: name of the label scheme (`labels` in the file).
        title: full names of the corpora.
        licence: their licences.
        homepage: where they are described.
        sources: the same, corpus by corpus.
        note: remark for the card.
        training_pictures: number of pictures in the training part.
    """

    corpora: Names
    scheme: Text
    title: Text = ""
    licence: Text = ""
    homepage: Text = ""
    sources: Annotated[tuple[Source, ...], Meta(max_length=1_000)] = ()
    note: Text = ""
    training_pictures: Count = 0


class Speakers(TypedDict):
    """Names of the speakers of each part."""

    train: Names
    valid: Names
    test: Names


class HeldOut(Struct, frozen=True, kw_only=True):
    """One fold of a protocol, as it is reported with results.

    Args:
        protocol: name of the protocol.
        fold: number of the fold, from 0, or its name.
        speakers: speakers of each part.
        leak: what leaks from training to test; empty if nothing does.
        folds: number of folds; 0 if unknown.
    """

    protocol: Text
    fold: Text | Count
    speakers: Speakers
    leak: Text
    folds: Count = 0

    @classmethod
    def of(cls, split: "Split") -> Self:
        """Return the description of a split for results."""
        speakers = Speakers(**{part: tuple(names) for part, names in split.speakers.items()})  # type: ignore[typeddict-item]
        return cls(protocol=split.protocol, fold=split.fold, folds=split.folds, speakers=speakers, leak=split.leak)


class Training(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A training run.

    Args:
        seed: its seed.
        settings: everything its result depends on, as JSON values.
        epoch: the epoch that was kept, from 0; None for training without epochs.
        seconds: its duration.
        chosen: hyper-parameters that a search chose.
        left_out: why clips were left out, one sentence per clip.
    """

    seed: Count | None = None
    settings: dict[str, Any] = {}
    epoch: Count | None = None
    seconds: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    chosen: dict[str, Any] = {}
    left_out: Names = ()

    def setting(self, name: str) -> str:
        """Return a setting that is text; empty if it is missing or something else."""
        value = self.settings.get(name, "")
        return value if isinstance(value, str) else ""


class Figures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Figures of one part of the speakers.

    Args:
        clips: number of clips.
        uar: unweighted average recall.
        wa: accuracy.
        f1: macro-F1.
        corpora: figures corpus by corpus, if there are several; the figures above are then means over corpora.
    """

    clips: Count
    uar: Share
    wa: Share
    f1: Share
    corpora: dict[str, "Figures"] = {}


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Figures of networks trained with the same recipe and evaluated on speakers outside their training data.

    Args:
        table: CSV of the study.
        system: its system.
        protocol: its protocol.
        folds: number of folds.
        seeds: number of seeds.
        runs: number of runs.
        uar: mean UAR of the runs.
        lowest: UAR of the worst run.
        highest: UAR of the best run.
        by_corpus: mean UAR by tested corpus, under `cross-corpus`.
    """

    table: Text
    system: Text
    protocol: Text
    folds: Count
    seeds: Count
    runs: Count
    uar: Share
    lowest: Share
    highest: Share
    by_corpus: dict[str, Share] = {}


class SoundFigures(Struct, frozen=True, kw_only=True):
    """Figures of one source of sounds without speech, from a detector that was trained without it.

    Args:
        sounds: number of sounds.
        answered: share that was classified as an emotion.
    """

    sounds: Count
    answered: Share


class Sounds(Struct, frozen=True, kw_only=True):
    """Figures of the speech detector.

    Args:
        sources: figures by source of sounds.
        refused: share of the speakers' clips that were classified as `no speech`, by part.
    """

    sources: dict[str, SoundFigures]
    refused: dict[str, Share]


class Export(Struct, frozen=True, kw_only=True):
    """The origin of an exported network.

    Args:
        of: identity of the checkpoint.
        compared: agreement with PyTorch, by engine.
        sha256: SHA-256 of the exported file.
    """

    of: Text
    compared: dict[str, Any] = {}
    sha256: Text = ""


class Adaptation(Struct, frozen=True, kw_only=True):
    """The recordings, without labels, to which a checkpoint was adapted.

    Args:
        of: name and identity of the checkpoint before.
        recordings: number of recordings.
        share: weight of the recordings in the statistics.
    """

    of: Text
    recordings: Count
    share: Share


class Normalisation(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How gray values become the network's input.

    Args:
        mean: one value per channel, as a share of the gray scale.
        std: one value per channel, as a share of the gray scale.
        turned: whether pictures are turned upside down, for networks that were trained with the lowest band in row 0.
    """

    mean: Channels
    std: Deviations
    turned: bool = False

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) == 2:
                raise ValueError(f"normalisation.{name} has 2 values; it needs 1 or 3")


@dataclass(frozen=True, kw_only=True)
class SpeechDetector:
    """Distinguishes speech from other sound: a logistic regression on the input of the network's last layer.

    Args:
        weight: one number per feature.
        bias: set so that the probability of speech is 0.5 at the decision threshold.
    """

    weight: Annotated[tuple[Weight, ...], Meta(min_length=1, max_length=65_536)]
    bias: Weight

    def probabilities(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the probability of speech, float64 of shape (pictures,).

        Args:
            embeddings: of shape (pictures, features).
        """
        terms = embeddings.astype(np.float64) * np.array(self.weight)
        logits = terms.sum(axis=1) + self.bias  # a sum per row gives the same digits in any batch
        probabilities: npt.NDArray[np.float64] = expit(logits)
        return probabilities


class Result(Struct, frozen=True, kw_only=True):
    """The part of a result that a study reads, from a checkpoint's `spectro.json` or another system's `run.json`.

    Args:
        backbone: name of the trained network or system.
        data: the recordings.
        split: the speakers that were held out.
        training: the training run.
        metrics: figures by part.
        parameters: number of trained parameters; None for systems that store clips or trees.
    """

    backbone: Text
    data: TrainingData
    split: HeldOut
    training: Training
    metrics: dict[str, Figures] = {}
    parameters: Count | None = None


class Description(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of `spectro.json`: a network and its origin.

    Args:
        backbone: name of the network.
        hidden: units of the head's hidden layer; 0 for none.
        labels: labels, in the order of the network's outputs.
        spec: spec of its input pictures.
        normalisation: how gray values become its input.
        temperature: divides logits before the softmax.
        dtype: number format of the stored weights.
        parameters: number of trained parameters.
        speech: the speech detector; None if none was trained.
        estimate: figures to expect on new speakers, if all speakers were trained on.
        heard_before: full names of the speakers that the starting weights and the teachers were trained on.
        weights: the starting weights, as text for people.
        teachers: the checkpoints whose probabilities were part of the targets, as text for people.
        teacher_share: weight of their probabilities in a target.
        data: the recordings; None if unknown.
        split: the speakers that were held out; None if unknown.
        training: the training run; None if unknown.
        versions: versions of Python and of packages.
        metrics: figures by part.
        sounds: figures of the speech detector; None if there is none.
        adapted: the recordings that it was adapted to; None for none. All figures are those of the network before.
        export: the checkpoint that this was exported from; None for a checkpoint itself.
    """

    format: Literal[1, 2] = FORMAT
    backbone: Annotated[str, Meta(max_length=200)]
    hidden: Annotated[int, Meta(ge=0, le=65_536)]
    labels: Annotated[tuple[str, ...], Meta(min_length=1, max_length=10_000)]
    spec: SpectrogramSpec
    normalisation: Normalisation
    temperature: Annotated[float, Meta(ge=COLDEST, le=HOTTEST)]
    dtype: Dtype | None = None
    parameters: Count = 0
    speech: SpeechDetector | None = None
    estimate: Annotated[tuple[Estimate, ...], Meta(max_length=1_000)] = ()
    heard_before: Names = ()
    weights: Text = ""
    teachers: Names = ()
    teacher_share: Share = 0.0
    data: TrainingData | None = None
    split: HeldOut | None = None
    training: Training | None = None
    versions: dict[str, Text] = {}
    metrics: dict[str, Figures] = {}
    sounds: Sounds | None = None
    adapted: Adaptation | None = None
    export: Export | None = None

    def __post_init__(self) -> None:
        if problem := label_problem(self.labels):
            raise ValueError(problem)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a checkpoint folder's `spectro.json`.

        Raises:
            CheckpointError: it is missing or damaged, or its parts do not fit together.
        """
        return cls.from_dict(content_of(folder), folder)

    @classmethod
    def from_dict(cls, content: dict[str, Any], folder: Path) -> Self:
        """Make a description from the content of a `spectro.json`.

        Args:
            content: JSON values.
            folder: the folder that an error names.

        Raises:
            CheckpointError: its parts do not fit together.
        """
        try:
            return typed({**content, "spec": SpectrogramSpec.from_dict(content.get("spec"))}, cls)
        except (ValueError, SpectroError) as error:
            raise misfit(folder, error) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `spectro.json` as JSON values."""
        content: dict[str, Any] = plain(self)
        return {"format": FORMAT, **content, "spec": self.spec.to_dict()}

    @property
    def origin(self) -> dict[str, Any]:
        """The network's origin, as JSON values: all fields but those that are needed to use it."""
        own = ("format", "backbone", "hidden", "labels", "spec", "normalisation", "temperature", "dtype", "parameters")
        return {name: value for name, value in self.to_dict().items() if name not in (*own, "speech")}

    def probabilities(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Return float64 probabilities of shape (batch, labels), calibrated by the temperature; NaN for NaN."""
        scaled = logits.astype(np.float64) / self.temperature
        with np.errstate(invalid="ignore"):  # infinite logits; the caller checks the result
            probabilities: npt.NDArray[np.float64] = softmax(scaled, axis=-1)
        return probabilities

    def training_speakers(self) -> set[str]:
        """Return the full names of the speakers that it, its starting weights or its teachers were trained on.

        Validation speakers are included.
        """
        from spectro.corpora.splits import full_names  # importing pandas takes a third of a second

        if self.data is None or self.split is None:
            return set()
        speakers = self.split.speakers
        own = full_names({*speakers["train"], *speakers["valid"]}, self.data.corpora)
        return {*own.values(), *self.heard_before}


def misfit(folder: Path, error: Exception) -> CheckpointError:
    """Return the error for a checkpoint that contradicts itself."""
    return CheckpointError(
        f"{printable(folder)}: its parts do not fit together ({error}); take another checkpoint, or train it again"
    )


def label_problem(labels: Sequence[Any]) -> str | None:
    """Return why names cannot be the labels of a network, as a sentence; None if they can.

    Labels are printable text without surrounding blanks. They differ from each other in more than case, and none is in
    `RESERVED`, because they are values and column names in tables.
    """
    seen: dict[str, str] = {}
    for label in labels:
        if not isinstance(label, str) or not label or label != label.strip() or not label.isprintable():
            return f"the label {quoted(label)} is not printable text without blanks around it"
        if len(label) > LONGEST_LABEL:
            return f"the label {quoted(label)} is longer than {LONGEST_LABEL} characters"
        if label.casefold() in RESERVED:
            return f"the label {quoted(label)} is reserved in tables for rows without an emotion: give it another name"
        if label.casefold() in seen:
            return f"the labels {quoted(seen[label.casefold()])} and {quoted(label)} are alike: give each its own name"
        seen[label.casefold()] = label
    return None


def content_of(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint folder's `spectro.json`, checked only for its format.

    Raises:
        CheckpointError: it is missing or damaged, or of another format.
    """
    try:
        content = read_foreign_json(folder / DESCRIPTION_FILE)
    except FileNotFoundError as error:
        raise missing(folder, DESCRIPTION_FILE) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(folder)}: {DESCRIPTION_FILE} cannot be read ({error}); take another checkpoint"
        ) from error
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] not in FORMATS:
        raise CheckpointError(
            f"{printable(folder)}: is not a checkpoint of format {' or '.join(map(str, FORMATS))}; update spectro, "
            "or train again"
        )
    return content


def missing(folder: Path, name: str) -> CheckpointError:
    """Return the error for a checkpoint folder that lacks a file."""
    return CheckpointError(
        f"{printable(folder)}: holds no checkpoint ({name} is missing); make one with scripts/finetune.py"
    )


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an exported network and not the checkpoint itself."""
    return (folder / EXPORT_FILE).exists() and not (folder / WEIGHTS_FILE).exists()


def identity(folder: Path) -> str:
    """Return 16 hexadecimal digits that identify the checkpoint in a folder.

    Raises:
        OSError: a file of it cannot be read.
    """
    network = EXPORT_FILE if is_export(folder) else WEIGHTS_FILE
    digests = []
    for name in (network, DESCRIPTION_FILE):
        with (folder / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return fingerprint(digests)
