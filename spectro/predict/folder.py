"""Recordings, folders and lists -> one row each, in batches; the next batch is read while the network runs."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from spectro.corpora.table import recordings
from spectro.errors import AudioError, ImageError, PredictionError
from spectro.files import printable
from spectro.learn.checkpoint import Checkpoint
from spectro.signal import audio, image
from spectro.signal.spectrogram import Image

READERS = 2


class Draws(Protocol):
    """What rows are made with: a `Predictor`."""

    checkpoint: Checkpoint

    def draw(self, source: Path) -> Image:
        """Draw the picture of a recording."""

    def probabilities(self, pictures: Sequence[Image]) -> npt.NDArray[np.float64]:
        """Return float64 probabilities of shape (pictures, labels)."""


@dataclass(frozen=True)
class Row:
    """What became of one recording.

    Args:
        path: its path, as text that any file can hold.
        start_s: begin of what the row is about, in seconds.
        end_s: its end, in seconds.
        label: the most likely label; empty if there is an error.
        confidence: its probability, 0 to 1; None if there is an error.
        probabilities: probability of every label; empty if there is an error.
        error: why there is no label; empty if there is one.
    """

    path: str
    start_s: float = 0.0
    end_s: float = 0.0
    label: str = ""
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def record(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the row as the columns of a predictions table."""
        chances = {f"p_{label}": self.probabilities.get(label) for label in labels}
        return {
            "path": self.path,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "label": self.label,
            "confidence": self.confidence,
            **chances,
            "error": self.error,
        }


def columns(labels: Sequence[str]) -> list[str]:
    """Return the columns of a predictions table."""
    return list(Row("").record(labels))


def expand(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield the recordings that inputs name: files as they are, folders with all folders below, lists line by line.

    Raises:
        PredictionError: nothing is named, an input is not there, or a list cannot be read.
    """
    paths = [Path(given) for given in inputs]
    if not paths:
        raise PredictionError("nothing to predict: name recordings, folders or lists")
    for path in paths:
        if not os.path.lexists(path):
            raise PredictionError(f"{printable(path)}: is not there")
    return (found for path in paths for found in _expand_one(path))


def _expand_one(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from recordings(path)
    elif path.suffix.lower() in (".txt", ".csv"):
        yield from _read_list(path)
    else:
        yield path


def _read_list(path: Path) -> list[Path]:
    """Return the paths that a list names, relative to the list's folder."""
    try:
        if path.suffix.lower() == ".csv":
            names = pd.read_csv(path, dtype=str, usecols=["path"])["path"].dropna().tolist()
        else:
            names = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise PredictionError(f"{printable(path)}: is not a readable list of paths ({error})") from error
    return [path.parent / name for name in names]


def predict_rows(predictor: Draws, paths: Iterable[Path], *, batch_size: int = 32) -> Iterator[Row]:
    """Yield a row for each path, in order; at most two batches are in memory.

    Args:
        predictor: draws pictures and tells probabilities.
        paths: recordings, or pictures (.png).
        batch_size: pictures that the network takes at a time.
    """
    waiting: deque[list[tuple[Path, Future[Image]]]] = deque()
    remaining = iter(paths)
    with ThreadPoolExecutor(READERS) as pool:
        while chunk := list(islice(remaining, batch_size)):
            waiting.append([(path, pool.submit(_draw, predictor, path)) for path in chunk])
            if len(waiting) > 1:
                yield from _finish(predictor, waiting.popleft())
        while waiting:
            yield from _finish(predictor, waiting.popleft())


def _draw(predictor: Draws, path: Path) -> Image:
    if path.suffix.lower() == ".png":
        return image.read(path, predictor.checkpoint.spec).pixels
    return predictor.draw(path)


def _finish(predictor: Draws, drawn: list[tuple[Path, Future[Image]]]) -> Iterator[Row]:
    errors = {}
    pictures = {}
    for place, (path, future) in enumerate(drawn):
        try:
            pictures[place] = future.result()
        except (AudioError, ImageError) as error:
            errors[place] = str(error).removeprefix(f"{printable(path)}: ")
    found = dict(zip(pictures, predictor.probabilities(list(pictures.values())), strict=True))
    for place, (path, _future) in enumerate(drawn):
        if place in errors:
            yield Row(printable(path), error=errors[place])
        else:
            yield _row(path, found[place], predictor.checkpoint.labels)


def _row(path: Path, chances: npt.NDArray[np.float64], labels: Sequence[str]) -> Row:
    best = int(chances.argmax())
    return Row(
        path=printable(path),
        end_s=round(audio.duration_s(path), 3),
        label=labels[best],
        confidence=float(chances[best]),
        probabilities=dict(zip(labels, chances.tolist(), strict=True)),
    )
