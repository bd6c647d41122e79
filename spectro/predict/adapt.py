"""Adapts a checkpoint to a user's recordings, without labels: its statistics move towards theirs."""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch

from spectro.addresses import Place
from spectro.engines.base import Probabilities, Scores, batch
from spectro.errors import PredictionError
from spectro.files import quoted
from spectro.model import batch_norms
from spectro.model.checkpoint import Checkpoint, kept
from spectro.model.metadata import Adaptation
from spectro.picture.spec import Image
from spectro.predict.batches import predict_rows
from spectro.predict.predictor import Predictor
from spectro.predict.results import Row

SHARE = 0.5
"""Weight of the recordings in the statistics; chosen on EMOVO, for a network that was not trained on it."""


class _Kept:
    """A predictor that keeps the pictures it scores, in order."""

    def __init__(self, predictor: Predictor) -> None:
        self.checkpoint, self._predictor = predictor.checkpoint, predictor
        self.pictures: deque[Image] = deque()

    def render(self, source: Path | BinaryIO) -> Image:
        return self._predictor.render(source)

    def judge(self, probabilities: Probabilities, speech: float | None = None) -> str:
        return self._predictor.judge(probabilities, speech)

    def scores(self, pictures: Sequence[Image]) -> Scores:
        self.pictures.extend(pictures)
        return self._predictor.scores(pictures)


def with_pictures(
    predictor: Predictor, paths: Iterable[Place], *, batch_size: int = 32
) -> Iterator[tuple[Row, Image | None]]:
    """Yield the row and the picture of each recording, in order; no picture if the row has an error.

    Args:
        predictor: renders and scores the recordings.
        paths: recordings or pictures (.png), or addresses of these.
        batch_size: pictures per batch.
    """
    kept = _Kept(predictor)
    for row in predict_rows(kept, paths, batch_size=batch_size):
        yield row, None if row.error else kept.pictures.popleft()


def check_adaptable(checkpoint: Checkpoint) -> None:
    """Raise PredictionError if a checkpoint is adapted already, or has no statistics that can be."""
    if checkpoint.about.adapted is not None:
        raise PredictionError(f"the checkpoint is adapted already; adapt the one before: {checkpoint.about.adapted.of}")
    if not batch_norms.adaptable(checkpoint.net):
        raise PredictionError(
            f"the network {quoted(checkpoint.about.backbone)} has no batch norms, and the checkpoint no statistics of "
            "its features, so there is nothing to adapt: train it again, or name a checkpoint of another network"
        )


def check_share(share: float) -> None:
    """Raise PredictionError if a share is not above 0 and at most 1."""
    if not 0 < share <= 1:
        raise PredictionError(f"share is {share}; it must lie above 0, and be at most 1")


def adapted(
    checkpoint: Checkpoint, pictures: Sequence[Image], *, of: str, share: float = SHARE, batch_size: int = 32
) -> Checkpoint:
    """Return a checkpoint that is adapted to pictures; the given one is not modified.

    Its batch norms are adapted, or its features if the network has none.

    Args:
        checkpoint: the checkpoint.
        pictures: uint8 arrays of shape `spec.shape`, at least two, of speech like that to be classified later.
        of: name and identity of the checkpoint, for the description.
        share: weight of the pictures in the statistics, above 0 and at most 1.
        batch_size: minimum number of pictures per batch.

    Raises:
        PredictionError: there are fewer than two pictures, the share is out of range, the checkpoint is adapted
            already, it has nothing to adapt, or the number format of the checkpoint cannot hold the statistics.

    Source: see `spectro.model.batch_norms.adapt`.
    """
    check_share(share)
    check_adaptable(checkpoint)
    if len(pictures) < 2:
        raise PredictionError(f"{len(pictures)} recordings with speech; at least 2 are needed to adapt to")
    net = copy.deepcopy(checkpoint.net)
    device = next(net.parameters()).device

    def shown(places: Iterable[int]) -> torch.Tensor:
        return torch.from_numpy(batch([pictures[place] for place in places])).to(device)

    batch_norms.adapt(net, map(shown, batch_norms.strided(len(pictures), batch_size)), share)
    dtype = checkpoint.about.dtype or "float32"
    net.load_state_dict(kept(net, dtype))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values()):
        raise PredictionError(f"statistics are not finite in {dtype} after adaptation; choose a smaller share")
    about = msgspec.structs.replace(
        checkpoint.about, adapted=Adaptation(of=of, recordings=len(pictures), share=share), export=None
    )
    return Checkpoint(net=net, about=about)
