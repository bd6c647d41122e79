"""The interface of engines: an engine computes the network of one checkpoint.

Every output is checked: values that are not finite are the checkpoint's fault, and never become a label.
"""

import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from spectro.engines.forks import FORKS
from spectro.errors import CheckpointError
from spectro.files import printable
from spectro.picture.spec import Image

EngineName: TypeAlias = Literal["auto", "torch", "onnx", "openvino"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
Pictures: TypeAlias = npt.NDArray[np.uint8]
Probabilities: TypeAlias = npt.NDArray[np.float64]
Embedding: TypeAlias = npt.NDArray[np.float32]

CLOSE_CALL = 0.2
"""Below this difference of the two most likely labels in bfloat16, float32 decides; larger ones hardly ever flip."""
CLOSE_SPEECH = 0.05
"""Within this distance of the least probability of speech in bfloat16, float32 decides."""


@dataclass(frozen=True)
class Scores:
    """The network's output for some pictures.

    Args:
        probabilities: float64 of shape (pictures, labels).
        embeddings: inputs of the network's last layer, float32 of shape (pictures, features).
        speech: probability of speech, float64 of shape (pictures,); None if the checkpoint has no speech detector.
    """

    probabilities: Probabilities
    embeddings: Embedding
    speech: Probabilities | None = None

    def at(self, place: int) -> Self:
        """Return the scores of one of the pictures."""
        one = slice(place, place + 1)
        speech = None if self.speech is None else self.speech[one]
        return replace(self, probabilities=self.probabilities[one], embeddings=self.embeddings[one], speech=speech)


Scoring: TypeAlias = Callable[[Pictures], Scores]


class Engine(ABC):
    """Computes the network of one checkpoint; may be used by several threads, and in forked processes.

    Args:
        source: name of the checkpoint in errors.
        native: objects that wait for threads of their own when they are destroyed.

    Attributes:
        name: engine and precision: `openvino 2026.0, float32`.
        lock: its holder has the network to itself.
    """

    key: ClassVar[str]
    """Its name for `--engine`."""
    package: ClassVar[str]
    """The package that it needs."""
    precisions: ClassVar[tuple[Precision, ...]]
    """Precisions that it can compute in."""

    name: str

    def __init__(self, source: str, native: Sequence[Any] = ()) -> None:
        self.lock = threading.RLock()
        self.native = native
        self._source = source
        FORKS.add(self.key, self)

    @abstractmethod
    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width).

        Raises:
            CheckpointError: the network's output is not finite.
        """

    def exact(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures in float32, whichever the precision of `scores`."""
        return self.scores(pictures)

    @classmethod
    def installed(cls) -> bool:
        """Return whether its package is installed."""
        return importlib.util.find_spec(cls.package) is not None


class ExportEngine(Engine):
    """Computes an exported network, on the CPU.

    Args:
        folder: the folder of an exported network.
        precision: precision to compute in, one of `precisions`.
        native: objects that wait for threads of their own when they are destroyed.
    """

    files: ClassVar[tuple[str, ...]] = ()
    """Files that it keeps in an export's folder, besides the ONNX file."""

    def __init__(self, folder: Path, precision: Precision = "float32", native: Sequence[Any] = ()) -> None:
        super().__init__(printable(folder), native)

    @classmethod
    def convert(cls, folder: Path) -> None:
        """Write these files, from the ONNX file in the folder."""


def finite(found: Scores, source: str) -> Scores:
    """Return scores unchanged, if all of them are finite.

    Args:
        found: output of a network.
        source: name of its checkpoint in errors.

    Raises:
        CheckpointError: a probability, or a value of an embedding, is not finite.
    """
    if not (np.isfinite(found.probabilities).all() and np.isfinite(found.embeddings).all()):
        raise CheckpointError(
            f"{source}: its network outputs values that are not finite (NaN or infinite), as with damaged weights; "
            "use another checkpoint, or train it again"
        )
    return found


def settle(pictures: Pictures, exact: Scoring, rough: Scoring | None = None) -> Scores:
    """Score pictures roughly, and again exactly where the two most likely labels are less than `CLOSE_CALL` apart.

    Args:
        pictures: uint8 of shape (pictures, 1 or 3, height, width).
        exact: scores pictures exactly.
        rough: scores pictures faster; None to score all of them exactly.
    """
    if rough is None:
        return exact(pictures)
    found = rough(pictures)
    if found.probabilities.shape[1] < 2:
        return found
    ordered = np.sort(found.probabilities, axis=1)
    clear = (ordered[:, -1] - ordered[:, -2] >= CLOSE_CALL) & np.isfinite(found.embeddings).all(axis=1)
    close = np.flatnonzero(~clear)  # NaN counts as close
    if len(close):
        again = exact(pictures[close])
        found.probabilities[close], found.embeddings[close] = again.probabilities, again.embeddings
    return found


def batch(pictures: Sequence[Image]) -> Pictures:
    """Return pictures as a batch: uint8 of shape (pictures, 1 or 3, height, width)."""
    stacked = np.stack([p[..., None] if p.ndim == 2 else p for p in pictures]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked)


def first_line(error: Exception) -> str:
    """Return the first line of a runtime's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
