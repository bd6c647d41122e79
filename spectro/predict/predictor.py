"""Recordings and pictures -> labels with probabilities, with the same rendering as in training."""

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Self, TypeAlias

import numpy as np

from spectro.audio import recording
from spectro.engines.base import CLOSE_SPEECH, Embedding, EngineName, Precision, Probabilities, Scores, batch
from spectro.engines.choose import engine_for
from spectro.engines.pytorch import TorchEngine
from spectro.errors import ImageError, PredictionError
from spectro.model.locate import default_checkpoint
from spectro.picture import png, spectrogram
from spectro.picture.spec import Image
from spectro.predict.batches import check_batch_size, predict_rows
from spectro.predict.inputs import expand
from spectro.predict.results import NO_SPEECH, Row, verdict
from spectro.predict.timeline.segments import Segment, timeline
from spectro.predict.timeline.windows import WindowSettings

if TYPE_CHECKING:
    from spectro.model.checkpoint import Checkpoint

Source: TypeAlias = str | os.PathLike[str] | BinaryIO

UNSURE = "unsure"


@dataclass(frozen=True)
class Prediction:
    """The prediction for one clip.

    Args:
        label: the most likely label; `no speech` if speech is unlikely; or `unsure` if the two most likely labels are
            closer than the predictor's margin.
        confidence: probability of the most likely label, 0 to 1, calibrated on validation speakers; that of `no speech`
            if that is the label.
        probabilities: probability of every label, given speech, in the checkpoint's order; they sum to 1.
        embedding: input of the network's last layer, float32 of shape (features,).
        speech: probability that the recording contains speech, 0 to 1; None if the checkpoint has no speech detector.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    embedding: Embedding = field(compare=False, repr=False)
    speech: float | None = None


class Predictor:
    """Classifies recordings and pictures with one checkpoint.

    Args:
        checkpoint: a checkpoint, its folder, or the folder of an exported network.
        device: `cpu`, `cuda`, ...; None for a GPU if there is one.
        engine: name of the engine that computes the network, one of `spectro.engines`; or `auto` for the fastest that
            is installed (or the one in the environment variable SPECTRO_ENGINE). `predictor.engine.name` names the
            engine in use.
        precision: `float32`, or `bfloat16` for more speed and less exact probabilities, except for close calls.
        max_duration_s: longest recording accepted, in seconds; None for no limit. The network is given
            `checkpoint.spec.duration_s` of it: the middle (or the start, as the spec says), or the part with the most
            speech if another part has more.
        min_margin: the label is `unsure` if the probabilities of the two most likely labels are closer than this (0
            to 1).
        min_speech: the label is `no speech` if the probability of speech is below this, 0 to 1; 0 for never.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be used.
        PredictionError: the device or engine does not exist, or `min_margin` or `min_speech` is not between 0 and 1.

    Example:
        >>> predictor = Predictor("checkpoints/yamnet-voices")
        >>> predictor.predict_wav("clip.wav").label
        'happy'
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        *,
        device: str | None = None,
        engine: EngineName = "auto",
        precision: Precision = "float32",
        max_duration_s: float | None = recording.DEFAULT_MAX_DURATION_S,
        min_margin: float = 0.0,
        min_speech: float = 0.5,
    ) -> None:
        for name, value in (("min_margin", min_margin), ("min_speech", min_speech)):
            if not 0 <= value <= 1:
                raise PredictionError(f"{name} is {value}; it must lie between 0 and 1")
        self._source, self._device, self._precision = checkpoint, device, precision
        self.checkpoint, self.engine = engine_for(checkpoint, engine, device=device, precision=precision)
        self.max_duration_s = max_duration_s
        self.min_margin, self.min_speech = min_margin, min_speech

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the probabilities."""
        return self.checkpoint.labels

    def predict_wav(self, source: Source) -> Prediction:
        """Classify a recording: WAV, FLAC, OGG, MP3 or any other format that libsndfile reads.

        Args:
            source: a path, an address, or a seekable binary file.

        Raises:
            AudioError: the recording cannot be used; the message names it and the reason.
        """
        return self.predict_pixels([self.render(source)])[0]

    def predict_image(self, source: Source) -> Prediction:
        """Classify a picture that was rendered with this checkpoint's spec.

        Args:
            source: a path, or a binary file.

        Raises:
            ImageError: not a complete PNG, or not rendered with this spec.
        """
        return self.predict_pixels([png.read(source, self.checkpoint.spec).pixels])[0]

    def predict_folder(self, *inputs: str | os.PathLike[str], batch_size: int = 32) -> Iterator[Row]:
        """Classify recordings, folders of them (with all subfolders), and lists, in batches.

        Args:
            inputs: recordings, pictures (.png), folders, or lists: a .txt with one path per line, or a .csv with a
                column `path`.
            batch_size: pictures per batch.

        Yields:
            a row for each recording, in order; a recording that cannot be used has an `error` and no label.

        Raises:
            PredictionError: an input does not exist, a list cannot be read, or the batch size is not positive.
        """
        check_batch_size(batch_size)
        return predict_rows(self, expand(inputs), batch_size=batch_size)

    def timeline(
        self,
        source: Source,
        settings: WindowSettings | None = None,
        *,
        split_channels: bool = False,
        max_duration_s: float | None = None,
    ) -> Iterator[Segment]:
        """Yield the segments of a recording of any length; see `predict.timeline.segments`.

        Raises:
            AudioError: the recording cannot be used, or cannot be read past some point.
        """
        return timeline(self, source, settings, split_channels=split_channels, max_duration_s=max_duration_s)

    def render(self, source: Source) -> Image:
        """Render a recording as the network's input picture: uint8 of shape `checkpoint.spec.shape`.

        Raises:
            AudioError: the recording cannot be used.
        """
        spec = self.checkpoint.spec
        return spectrogram.render(spectrogram.read(source, spec, max_duration_s=self.max_duration_s), spec)

    def predict_pixels(self, pictures: Sequence[Image]) -> list[Prediction]:
        """Classify a batch of pictures.

        Args:
            pictures: uint8 arrays of shape `checkpoint.spec.shape`.

        Raises:
            ImageError: a picture has another type or shape.
            CheckpointError: the network's output is not finite.
        """
        found = self.scores(pictures)
        return [
            Prediction(**verdict(self, found.at(place)), embedding=found.embeddings[place])
            for place in range(len(pictures))
        ]

    def scores(self, pictures: Sequence[Image]) -> Scores:
        """Return the probabilities and the embeddings of a batch of pictures.

        Args:
            pictures: uint8 arrays of shape `checkpoint.spec.shape`.

        Raises:
            ImageError: a picture has another type or shape.
            CheckpointError: the network's output is not finite.
        """
        shape = self.checkpoint.spec.shape
        for place, one in enumerate(pictures):
            if not isinstance(one, np.ndarray) or one.dtype != np.uint8 or one.shape != shape:
                found = f"{one.dtype} {one.shape}" if isinstance(one, np.ndarray) else f"a {type(one).__name__}"
                raise ImageError(
                    f"picture {place} is {found}; this checkpoint reads arrays of uint8 {shape}: render it with the "
                    "checkpoint's spec"
                )
        if not len(pictures):
            return Scores(np.zeros((0, len(self.labels))), np.zeros((0, 0), np.float32))
        shown = batch(pictures)
        scores = self.engine.scores(shown)
        detector = self.checkpoint.speech
        if detector is None:
            return scores
        speech = detector.probabilities(scores.embeddings)
        if self._precision != "float32" and self.min_speech:
            close = np.flatnonzero(np.abs(speech - self.min_speech) < CLOSE_SPEECH)
            if len(close):
                again = self.engine.exact(shown[close])
                scores.probabilities[close], scores.embeddings[close] = again.probabilities, again.embeddings
                speech[close] = detector.probabilities(again.embeddings)
        return replace(scores, speech=speech)

    @cached_property
    def torch_engine(self) -> TorchEngine:
        """The network in PyTorch, whichever engine computes predictions; loaded on first use.

        Raises:
            CheckpointError: this is an exported network, without the checkpoint that it was exported from.
        """
        if isinstance(self.engine, TorchEngine):
            return self.engine
        made = engine_for(self._source, "torch", device=self._device)[1]
        assert isinstance(made, TorchEngine)
        return made

    def with_margin(self, min_margin: float) -> Self:
        """Return a predictor with the same network and another margin.

        Raises:
            PredictionError: the margin is not between 0 and 1.
        """
        if not 0 <= min_margin <= 1:
            raise PredictionError(f"min_margin is {min_margin}; it must lie between 0 and 1")
        other = copy(self)
        other.min_margin = min_margin
        return other

    def judge(self, probabilities: Probabilities, speech: float | None = None) -> str:
        """Return the most likely label, `unsure`, or `no speech`.

        Args:
            probabilities: float64 of shape (labels,).
            speech: probability of speech; None if it is not known.
        """
        if speech is not None and speech < self.min_speech:
            return NO_SPEECH
        second, first = np.sort(probabilities)[-2:] if len(probabilities) > 1 else (0.0, 1.0)
        return UNSURE if first - second < self.min_margin else self.labels[int(probabilities.argmax())]


def load(
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    engine: EngineName = "auto",
    precision: Precision = "float32",
) -> Predictor:
    """Load a checkpoint for prediction.

    Args:
        checkpoint: its folder; None for the shipped default.
        device: `cpu`, `cuda`, ...; None for a GPU if there is one.
        engine: see `Predictor`.
        precision: `float32`, or `bfloat16` for more speed and less exact probabilities, except for close calls.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be used.
        PredictionError: the device or engine does not exist.
    """
    folder = default_checkpoint() if checkpoint is None else checkpoint
    return Predictor(folder, device=device, engine=engine, precision=precision)
