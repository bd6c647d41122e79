"""What a checkpoint folder says of itself in `spectro.json`: all that is needed to use it, but for the network.

Nothing here imports torch, so that an exported network answers without it.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from spectro.errors import CheckpointError, SpectroError
from spectro.files import fingerprint, printable
from spectro.signal.spectrogram import SpectrogramSpec

FORMAT = 1
WEIGHTS_FILE, EXPORT_FILE = "model.safetensors", "model.onnx"
DESCRIPTION_FILE, CARD_FILE = "spectro.json", "card.md"
OF_THE_NETWORK = ("format", "hidden", "normalisation", "dtype")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What must be known of a network to use it.

    Args:
        labels: labels in the order of the network's outputs.
        spec: the spec of the pictures that it reads.
        temperature: what logits are divided by before the softmax.
        backbone: name of the network.
        parameters: how many numbers of it were trained.
        origin: JSON values on where it comes from: `weights`, `data`, `split`, `training`, `metrics`, `versions`.
    """

    labels: tuple[str, ...]
    spec: SpectrogramSpec
    temperature: float = 1.0
    backbone: str = ""
    parameters: int = 0
    origin: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Return float64 probabilities of shape (batch, labels), calibrated by the temperature."""
        scaled = logits.astype(np.float64) / self.temperature
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
            own = {
                "labels": tuple(content["labels"]),
                "spec": SpectrogramSpec.from_dict(content["spec"]),
                "temperature": float(content["temperature"]),
                "backbone": content["backbone"],
                "parameters": int(content.get("parameters", 0)),
            }
        except (KeyError, TypeError, ValueError, SpectroError) as error:
            raise misfit(folder, error) from error
        if not 0 < own["temperature"] < math.inf:
            raise misfit(folder, ValueError(f"its temperature is {own['temperature']}"))
        rest = {key: value for key, value in content.items() if key not in (*own, *OF_THE_NETWORK)}
        return cls(**own, origin=rest)


def misfit(folder: Path, error: Exception) -> CheckpointError:
    """Return the error that says that a checkpoint contradicts itself."""
    return CheckpointError(f"{printable(folder)}: its parts do not fit together ({error})")


def read(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint folder's `spectro.json`.

    Raises:
        CheckpointError: it is missing or damaged, or of another format.
    """
    try:
        content = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing(folder, DESCRIPTION_FILE) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(folder)}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
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
