"""Recordings and pictures -> rows, in batches; the next batch is rendered while the network runs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

from spectro.addresses import FETCHERS, Address, Place
from spectro.audio import recording
from spectro.audio.source import readable
from spectro.engines.base import Scores
from spectro.errors import AudioError, ImageError, PredictionError
from spectro.files import path_text
from spectro.picture import png
from spectro.picture.spec import Image
from spectro.predict.inputs import reason_of
from spectro.predict.results import Row, Scorer, verdict
from spectro.processes import threads

MOST_READERS = 8  # rendering threads; more do not help, as decoding limits them

Item = TypeVar("Item")


def score_all(
    scorer: Scorer, items: Iterable[Item], render: Callable[[Item], Image], *, batch_size: int = 32, readers: int = 0
) -> Iterator[tuple[Item, Scores | AudioError | ImageError]]:
    """Yield each item with its scores (of one picture), in order; at most two batches are in memory.

    Threads render the pictures of the next batch while the network runs.

    Args:
        scorer: scores pictures.
        items: what to render pictures from.
        render: renders one picture; an `AudioError` or `ImageError` that it raises takes the place of the item's
            scores.
        batch_size: pictures per batch.
        readers: rendering threads; 0 for as many as this process has cores, at most `MOST_READERS`.

    Raises:
        PredictionError: the batch size is not positive.
    """
    check_batch_size(batch_size)
    waiting: deque[list[tuple[Item, Future[Image]]]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(readers or min(MOST_READERS, threads())) as pool:
        while chunk := list(islice(remaining, batch_size)):
            waiting.append([(item, pool.submit(render, item)) for item in chunk])
            if len(waiting) > 1:
                yield from _finish(scorer, waiting.popleft())
        while waiting:
            yield from _finish(scorer, waiting.popleft())


def check_batch_size(batch_size: int) -> None:
    """Raise PredictionError if the batch size is not positive."""
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
            yield item, scores.at(order[place])
        else:
            yield item, outcome


@dataclass
class _Clip:
    """A recording on its way to a row.

    Args:
        path: path or address of the recording.
        lasts_s: its duration in seconds, once it has been rendered.
    """

    path: Place
    lasts_s: float = 0.0


class Draws(Scorer, Protocol):
    """An object that also renders recordings: a `Predictor`."""

    def render(self, source: Path | BinaryIO) -> Image:
        """Render the picture of a recording."""


def predict_rows(predictor: Draws, paths: Iterable[Place], *, batch_size: int = 32) -> Iterator[Row]:
    """Yield a row for each path, in order; at most two batches are in memory.

    Args:
        predictor: renders and scores pictures.
        paths: recordings or pictures (.png), or addresses of these.
        batch_size: pictures per batch.
    """

    def render(clip: _Clip) -> Image:
        with readable(clip.path) as source:
            if clip.path.suffix.lower() == ".png":
                return png.read(source, predictor.checkpoint.spec).pixels
            pixels = predictor.render(source)
            clip.lasts_s = round(recording.duration_s(source), 3)
            return pixels

    remaining = iter(paths)
    first = list(islice(remaining, 1))
    clips = map(_Clip, chain(first, remaining))
    readers = FETCHERS if isinstance(first[0] if first else None, Address) else 0
    for clip, outcome in score_all(predictor, clips, render, batch_size=batch_size, readers=readers):
        path = clip.path
        if not isinstance(outcome, Scores):
            yield Row(path=path_text(path), error=reason_of(outcome, path))
            continue
        yield Row(
            path=path_text(path),
            end_s=clip.lasts_s,
            embedding=outcome.embeddings[0],
            **verdict(predictor, outcome),
        )
