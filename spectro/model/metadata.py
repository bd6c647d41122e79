"""What a checkpoint folder says of itself in `spectro.json`: all that is needed to use it, but for the network.

Nothing here imports torch, so that an exported network answers without it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from spectro.errors import CheckpointError, SpectroError
from spectro.files import fingerprint, printable, quoted, read_foreign_json
from spectro.model.schema import Check, anything, either, flag, keyed, many, number, one_of, record, text, whole
from spectro.picture.spec import SpectrogramSpec

FORMAT = 1
WEIGHTS_FILE, EXPORT_FILE = "model.safetensors", "model.onnx"
DESCRIPTION_FILE, CARD_FILE = "spectro.json", "card.md"
OF_THE_NETWORK = ("format", "hidden", "normalisation", "dtype")
RESERVED = ("unsure", "silence", "no speech", "speech")
"""What rows say where there is no emotion, and `p_speech` beside the labels' own columns: no label may be so called."""
LONGEST_LABEL = 100
COLDEST, HOTTEST = 0.001, 1_000.0
"""The temperatures between which probabilities can be computed."""


def a_channel_each(of: Check) -> Check:
    """Take a list of one value or of three."""
    return either(many(of, least=1, most=1), many(of, least=3, most=3))


NAMES = many(text())
FIGURES = record({"clips": whole(), "uar": number(0, 1), "wa": number(0, 1), "f1": number(0, 1)})
SCHEMA = record(
    {
        "backbone": text(200),
        "hidden": whole(most=65_536),
        "labels": many(anything, least=1, most=10_000),  # `label_problem` says what they must be
        "spec": anything,  # `SpectrogramSpec` says what it must be
        "normalisation": record(
            {"mean": a_channel_each(number(-100, 100)), "std": a_channel_each(number(1e-4, 100))},
            {"turned": flag},
        ),
        "temperature": number(COLDEST, HOTTEST),
    },
    {
        "dtype": one_of("float32", "float16"),
        "parameters": whole(),
        "weights": text(),
        "data": record(
            {"corpora": NAMES, "labels": text()},
            {
                **dict.fromkeys(("title", "licence", "homepage", "note"), text()),
                "training_pictures": whole(),
                "sources": many(record({}, dict.fromkeys(("title", "licence", "homepage"), text()))),
            },
        ),
        "split": record(
            {
                "protocol": text(),
                "fold": either(text(), whole()),
                "speakers": record({"train": NAMES, "valid": NAMES, "test": NAMES}),
                "leak": text(),
            },
            {"folds": whole()},
        ),
        "training": record(
            {},
            {
                "seed": whole(),
                "settings": record({}, dict.fromkeys(("weights", "monitor", "data"), text())),
                "epoch": whole(),
                "seconds": number(0, 1e12),
            },
        ),
        "metrics": keyed(FIGURES),
        "estimate": many(
            record(
                {
                    **dict.fromkeys(("table", "system", "protocol"), text()),
                    **dict.fromkeys(("folds", "seeds", "runs"), whole()),
                    **dict.fromkeys(("uar", "lowest", "highest"), number(0, 1)),
                },
                {"by_corpus": keyed(number(0, 1))},
            )
        ),
        "heard_before": NAMES,
        "sounds": record(
            {
                "sources": keyed(record({"sounds": whole(), "answered": number(0, 1)})),
                "refused": keyed(number(0, 1)),
            }
        ),
        "speech": record({"weight": many(number(-1e6, 1e6), least=1, most=65_536), "bias": number(-1e6, 1e6)}),
        "versions": keyed(text()),
        "export": record({"of": text()}, {"compared": keyed(anything), "sha256": text()}),
    },
)
"""What a `spectro.json` must hold, what it may hold besides, and of which kind each is; what is unknown is kept."""


@dataclass(frozen=True, kw_only=True)
class SpeechTeller:
    """Tells speech from all other sound by what the last layer of the network reads: a logistic regression.

    Args:
        weight: one number a feature.
        bias: so chosen that speech is as likely as not where the answer should change.
    """

    weight: tuple[float, ...]
    bias: float

    def chances(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the probability that somebody speaks, float64 of shape (pictures,).

        Args:
            embeddings: of shape (pictures, features).
        """
        terms = embeddings.astype(np.float64) * np.array(self.weight)
        logits = terms.sum(axis=1) + self.bias  # to the last digit the same for a picture, whatever the batch
        chances: npt.NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        return chances

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"weight": list(self.weight), "bias": self.bias}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What must be known of a network to use it.

    Args:
        labels: labels in the order of the network's outputs.
        spec: the spec of the pictures that it reads.
        temperature: what logits are divided by before the softmax.
        backbone: name of the network.
        parameters: how many numbers of it were trained.
        speech: tells speech from other sound; None if that was not learnt.
        origin: JSON values on where it comes from: `weights`, `data`, `split`, `training`, `metrics`, `versions`.
    """

    labels: tuple[str, ...]
    spec: SpectrogramSpec
    temperature: float = 1.0
    backbone: str = ""
    parameters: int = 0
    speech: SpeechTeller | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Return float64 probabilities of shape (batch, labels), calibrated by the temperature; NaN for NaN."""
        scaled = logits.astype(np.float64) / self.temperature
        with np.errstate(invalid="ignore"):  # infinite ones; who asks must look at what comes out
            powers: npt.NDArray[np.float64] = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        chances: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
        return chances

    @classmethod
    def from_dict(cls, content: dict[str, Any], folder: Path) -> Self:
        """Make a description from the content of a `spectro.json`.

        Raises:
            CheckpointError: its parts do not fit together.
        """
        try:
            SCHEMA(content, "")
            if problem := label_problem(content["labels"]):
                raise ValueError(problem)
            own = {
                "labels": tuple(content["labels"]),
                "spec": SpectrogramSpec.from_dict(content["spec"]),
                "temperature": float(content["temperature"]),
                "backbone": content["backbone"],
                "parameters": content.get("parameters", 0),
                "speech": _speech_teller(content.get("speech")),
            }
        except (ValueError, SpectroError) as error:
            raise misfit(folder, error) from error
        rest = {key: value for key, value in content.items() if key not in (*own, *OF_THE_NETWORK)}
        return cls(**own, origin=rest)


def _speech_teller(told: dict[str, Any] | None) -> SpeechTeller | None:
    return None if told is None else SpeechTeller(weight=tuple(map(float, told["weight"])), bias=float(told["bias"]))


def misfit(folder: Path, error: Exception) -> CheckpointError:
    """Return the error that says that a checkpoint contradicts itself."""
    return CheckpointError(
        f"{printable(folder)}: its parts do not fit together ({error}); take another checkpoint, or train it again"
    )


def label_problem(labels: Sequence[Any]) -> str | None:
    """Return what keeps names from being the labels of a network, in a sentence; None if nothing does.

    Labels are text that can be printed, without blanks around it, each unlike the others whatever its case, and none
    of `RESERVED`: rows and the columns of tables are told apart by them.
    """
    seen: dict[str, str] = {}
    for label in labels:
        if not isinstance(label, str) or not label or label != label.strip() or not label.isprintable():
            return f"the label {quoted(label)} is not text that can be printed, without blanks around it"
        if len(label) > LONGEST_LABEL:
            return f"the label {quoted(label)} is longer than {LONGEST_LABEL} characters"
        if label.casefold() in RESERVED:
            return f"the label {quoted(label)} says in tables that there is no emotion: give it another name"
        if label.casefold() in seen:
            return f"the labels {quoted(seen[label.casefold()])} and {quoted(label)} are alike: give each its own name"
        seen[label.casefold()] = label
    return None


def read(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint folder's `spectro.json`.

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
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
        raise CheckpointError(
            f"{printable(folder)}: is not a checkpoint of format {FORMAT}; update spectro, or train again"
        )
    return content


def missing(folder: Path, name: str) -> CheckpointError:
    """Return the error that says that a file of a checkpoint is not there."""
    return CheckpointError(
        f"{printable(folder)}: holds no checkpoint ({name} is missing); make one with scripts/finetune.py"
    )


def is_export(folder: Path) -> bool:
    """Tell whether a folder holds an exported network and not the checkpoint itself."""
    return (folder / EXPORT_FILE).exists() and not (folder / WEIGHTS_FILE).exists()


def identity(folder: Path) -> str:
    """Return 16 hexadecimal digits that tell the checkpoint in a folder from any other.

    Raises:
        OSError: a file of it cannot be read.
    """
    network = EXPORT_FILE if is_export(folder) else WEIGHTS_FILE
    digests = []
    for name in (network, DESCRIPTION_FILE):
        with (folder / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return fingerprint(digests)
