"""The result for one recording, or for a part of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from spectro.engines.base import Embedding, Probabilities, Scores
from spectro.model.metadata import Description
from spectro.picture.spec import Image

NO_SPEECH = "no speech"


class Scorer(Protocol):
    """An object that scores pictures and labels rows: a `Predictor`."""

    checkpoint: Description

    def scores(self, pictures: Sequence[Image]) -> Scores:
        """Score pictures."""

    def judge(self, probabilities: Probabilities, speech: float | None) -> str:
        """Return the label for probabilities."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result for one recording, or for a part of it.

    Args:
        path: path of the recording, as text that any file can hold.
        start_s: start of the part, in seconds.
        end_s: end of the part, in seconds.
        label: the most likely label, `unsure`, `no speech` or `silence`; empty if there is an error.
        confidence: probability of the most likely label, or of `no speech`, 0 to 1; None for silence or an error.
        probabilities: probability of every label, given speech; empty for silence or an error.
        error: why there is no label; empty if there is one.
        speech: probability of speech, 0 to 1; None for silence or an error, or if the checkpoint has no detector.
        embedding: input of the network's last layer, float32 of shape (features,); None if there is none.
    """

    path: str
    start_s: float = 0.0
    end_s: float = 0.0
    label: str = ""
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str = ""
    speech: float | None = None
    embedding: Embedding | None = field(default=None, compare=False, repr=False)

    def record(self, labels: Sequence[str], *, embeddings: bool = False) -> dict[str, Any]:
        """Return the row as the columns of a predictions table.

        Args:
            labels: the checkpoint's labels.
            embeddings: add the column `embedding`, a list of numbers.
        """
        probabilities = {f"p_{label}": self.probabilities.get(label) for label in labels}
        record: dict[str, Any] = {
            "path": self.path,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "label": self.label,
            "confidence": self.confidence,
            "p_speech": self.speech,
            **probabilities,
            "error": self.error,
        }
        if embeddings:
            record["embedding"] = None if self.embedding is None else self.embedding.tolist()
        return record


def verdict(scorer: Scorer, scores: Scores, label: str | None = None) -> dict[str, Any]:
    """Return a row's `label`, `confidence`, `probabilities` and `speech`.

    Args:
        scorer: a `Predictor`.
        scores: scores of one picture, or a mean over several.
        label: the label; None to derive it from the scores.
    """
    probabilities = scores.probabilities[0]
    speech = None if scores.speech is None else float(scores.speech[0])
    said = scorer.judge(probabilities, speech) if label is None else label
    return {
        "label": said,
        "confidence": 1 - speech if said == NO_SPEECH and speech is not None else float(probabilities.max()),
        "probabilities": dict(zip(scorer.checkpoint.labels, probabilities.tolist(), strict=True)),
        "speech": speech,
    }


def mean_scores(probabilities: Probabilities, speech: float) -> Scores:
    """Return means over windows as the scores of one picture.

    Args:
        probabilities: mean probabilities, float64 of shape (labels,).
        speech: mean probability of speech; NaN if the checkpoint has no speech detector.
    """
    known = None if np.isnan(speech) else np.array([speech])
    return Scores(probabilities[None], np.zeros((1, 0), np.float32), known)
