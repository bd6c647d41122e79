"""`predict_wav`, `predict_image` and `predict_folder` with the shipped checkpoint, loaded once."""

import os
from collections.abc import Iterator
from functools import cache

from spectro.predict.predictor import Prediction, Predictor, Source, load
from spectro.predict.results import Row


@cache
def default_predictor() -> Predictor:
    """Return a predictor with the shipped checkpoint; the same one each time.

    Raises:
        CheckpointError: the shipped checkpoint is missing.
    """
    return load()


def predict_wav(source: Source) -> Prediction:
    """Classify a recording with the shipped checkpoint; see `Predictor.predict_wav`."""
    return default_predictor().predict_wav(source)


def predict_image(source: Source) -> Prediction:
    """Classify a rendered picture with the shipped checkpoint; see `Predictor.predict_image`."""
    return default_predictor().predict_image(source)


def predict_folder(*inputs: str | os.PathLike[str], batch_size: int = 32) -> Iterator[Row]:
    """Classify recordings, folders and lists with the shipped checkpoint; see `Predictor.predict_folder`."""
    return default_predictor().predict_folder(*inputs, batch_size=batch_size)
