"""What is said of one recording, or of a part of one; and pictures scored in batches, drawn while the network runs."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from spectro.engines.base import Chances, Embedding, Scores
from spectro.errors import AudioError, ImageError, PredictionError
from spectro.learn.description import Description
from spectro.signal.spec import Image

READERS = max(2, min(8, os.cpu_count() or 2))  # threads that draw; decoding keeps them from being more use

Item = TypeVar("Item")


class Scorer(Protocol):
    """What rows are made with: a `Predictor`."""

    checkpoint: Description

    def scores(self, pictures: Sequence[Image]) -> Scores:
        """Score pictures."""

    def judge(self, chances: Chances) -> str:
        """Return the label that probabilities stand for."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one recording, or of a part of it.

    Args:
        path: its path, as text that any file can hold.
        start_s: begin of what the row is about, in seconds.
        end_s: its end, in seconds.
        label: the most likely label, `unsure`, or `silence`; empty if there is an error.
        confidence: probability of the most likely label, 0 to 1; None if nothing was heard.
        probabilities: probability of every label; empty if nothing was heard.
        error: why there is no label; empty if there is one.
        embedding: float32 of shape (features,), what the last layer of the network reads; None if nothing was heard.
    """

    path: str
    start_s: float = 0.0
    end_s: float = 0.0
    label: str = ""
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str = ""
    embedding: Embedding | None = field(default=None, compare=False, repr=False)

    def record(self, labels: Sequence[str], *, embeddings: bool = False) -> dict[str, Any]:
        """Return the row as the columns of a predictions table.

        Args:
            labels: the checkpoint's labels.
            embeddings: add the column `embedding`, a list of numbers.
        """
        chances = {f"p_{label}": self.probabilities.get(label) for label in labels}
        record: dict[str, Any] = {
            "path": self.path,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "label": self.label,
            "confidence": self.confidence,
            **chances,
            "error": self.error,
        }
        if embeddings:
            record["embedding"] = None if self.embedding is None else self.embedding.tolist()
        return record


def verdict(scorer: Scorer, chances: Chances) -> dict[str, Any]:
    """Return a row's `label`, `confidence` and `probabilities`."""
    return {
        "label": scorer.judge(chances),
        "confidence": float(chances.max()),
        "probabilities": dict(zip(scorer.checkpoint.labels, chances.tolist(), strict=True)),
    }


def score_all(
    scorer: Scorer, items: Iterable[Item], draw: Callable[[Item], Image], *, batch_size: int = 32
) -> Iterator[tuple[Item, Scores | AudioError | ImageError]]:
    """Yield each item with its scores (of one picture), in order; at most two batches are in memory.

    The pictures of the next batch are drawn, by threads, while the network runs.

    Args:
        scorer: tells probabilities.
        items: what pictures are drawn of.
        draw: draws one picture; an `AudioError` or `ImageError` that it raises stands in place of the item's scores.
        batch_size: pictures that the network takes at a time.

    Raises:
        PredictionError: the batch size is not positive.
    """
    check_batch_size(batch_size)
    waiting: deque[list[tuple[Item, Future[Image]]]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        while chunk := list(islice(remaining, batch_size)):
            waiting.append([(item, pool.submit(draw, item)) for item in chunk])
            if len(waiting) > 1:
                yield from _finish(scorer, waiting.popleft())
        while waiting:
            yield from _finish(scorer, waiting.popleft())


def check_batch_size(batch_size: int) -> None:
    """Raise PredictionError if so many pictures are no batch."""
    if batch_size < 1:
        raise PredictionError(f"batch_size is {batch_size}; at least 1 is needed")


def _finish(
    scorer: Scorer, drawn: list[tuple[Item, Future[Image]]]
) -> Iterator[tuple[Item, Scores | AudioError | ImageError]]:
    found: dict[int, Image | AudioError | ImageError] = {}
    for place, (_item, future) in enumerate(drawn):
        try:
            found[place] = future.result()
        except (AudioError, ImageError) as error:
            found[place] = error
    pictures = {place: picture for place, picture in found.items() if isinstance(picture, np.ndarray)}
    scores = scorer.scores(list(pictures.values()))
    order = {place: number for number, place in enumerate(pictures)}
    for place, (item, _future) in enumerate(drawn):
        outcome = found[place]
        if isinstance(outcome, np.ndarray):
            one = slice(order[place], order[place] + 1)
            yield item, Scores(scores.probabilities[one], scores.embeddings[one])
        else:
            yield item, outcome
