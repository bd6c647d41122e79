"""Recordings and pictures -> labels with probabilities, through the same picture-making as training."""

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Self, TypeAlias

import numpy as np

from spectro.audio import recording
from spectro.engines.base import Embedding, EngineName, Precision, Probabilities, Scores, batch
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
    """What the network makes of one clip.

    Args:
        label: the most likely label; `no speech` if nobody seems to speak; or `unsure` if the predictor was told a
            margin that the answer misses.
        confidence: probability of the most likely label, 0 to 1, calibrated on validation speakers; that of `no speech`
            where that is the answer.
        probabilities: probability of every label, if somebody speaks, in the checkpoint's order; they add up to 1.
        embedding: float32 of shape (features,): what the last layer of the network reads.
        speech: probability that somebody speaks, 0 to 1; None where the checkpoint cannot tell.
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
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        engine: what computes the network: a name of `spectro.engines`, or `auto` for the fastest that is installed (or
            what the environment's SPECTRO_ENGINE names). `predictor.engine.name` says which it is.
        precision: `float32`, or `bfloat16` for more speed and less exact probabilities, but for close calls.
        max_duration_s: recordings longer than this are refused, in seconds; None for no limit. What is shown to the
            network is `checkpoint.spec.duration_s` long: the middle (or the start, as the spec says),
            or the part with the most speech where another part has more.
        min_margin: the answer is `unsure` where the two most likely labels' probabilities are nearer than this, 0 to 1.
        min_speech: the answer is `no speech` where the probability of speech is below this, 0 to 1; 0 for never.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be used.
        PredictionError: there is no such device or engine, or the margin is not a share.

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
        self._source, self._device = checkpoint, device
        self.checkpoint, self.engine = engine_for(checkpoint, engine, device=device, precision=precision)
        self.max_duration_s = max_duration_s
        self.min_margin, self.min_speech = min_margin, min_speech

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the probabilities."""
        return self.checkpoint.labels

    def predict_wav(self, source: Source) -> Prediction:
        """Classify a recording: WAV, FLAC, OGG, MP3 or whatever else libsndfile reads.

        Args:
            source: a path, or a seekable binary file.

        Raises:
            AudioError: the recording cannot be used; the text names it and the reason.
        """
        return self.predict_pixels([self.render(source)])[0]

    def predict_image(self, source: Source) -> Prediction:
        """Classify a picture that was rendered by this checkpoint's spec.

        Args:
            source: a path, or a binary file.

        Raises:
            ImageError: not a whole PNG, or not rendered by this spec.
        """
        return self.predict_pixels([png.read(source, self.checkpoint.spec).pixels])[0]

    def predict_folder(self, *inputs: str | os.PathLike[str], batch_size: int = 32) -> Iterator[Row]:
        """Classify recordings, folders of them (with all folders below), and lists, in batches.

        Args:
            inputs: recordings, pictures (.png), folders, or lists: a .txt with a path a line, a .csv with a column
                `path`.
            batch_size: pictures that the network takes at a time.

        Yields:
            a row for each recording, in order; one that cannot be used has an `error` and no label.

        Raises:
            PredictionError: an input is not there, a list cannot be read, or the batch size is not positive.
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
        """Yield what is heard in the course of a recording of any length; see `predict.timeline.segments`.

        Raises:
            AudioError: the recording cannot be used, or not from some moment on.
        """
        return timeline(self, source, settings, split_channels=split_channels, max_duration_s=max_duration_s)

    def render(self, source: Source) -> Image:
        """Draw the picture that the network sees of a recording: uint8 of shape `checkpoint.spec.shape`.

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
            ImageError: one is of another kind or shape.
            CheckpointError: the network's answer is not finite.
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
            ImageError: one is of another kind or shape.
            CheckpointError: the network's answer is not finite.
        """
        shape = self.checkpoint.spec.shape
        for place, one in enumerate(pictures):
            if not isinstance(one, np.ndarray) or one.dtype != np.uint8 or one.shape != shape:
                found = f"{one.dtype} {one.shape}" if isinstance(one, np.ndarray) else f"a {type(one).__name__}"
                raise ImageError(
                    f"picture {place} is {found}; this checkpoint reads arrays of uint8 {shape}: draw it by the "
                    "checkpoint's spec"
                )
        if not len(pictures):
            return Scores(np.zeros((0, len(self.labels))), np.zeros((0, 0), np.float32))
        scores = self.engine.scores(batch(pictures))
        detector = self.checkpoint.speech
        return scores if detector is None else replace(scores, speech=detector.probabilities(scores.embeddings))

    @cached_property
    def torch_engine(self) -> TorchEngine:
        """The network in PyTorch, whatever computes predictions; loaded when it is first asked for.

        Raises:
            CheckpointError: this is an exported network, without the checkpoint that it was made of.
        """
        if isinstance(self.engine, TorchEngine):
            return self.engine
        made = engine_for(self._source, "torch", device=self._device)[1]
        assert isinstance(made, TorchEngine)
        return made

    def with_margin(self, min_margin: float) -> Self:
        """Return a predictor with the same network and another margin.

        Raises:
            PredictionError: the margin is not a share.
        """
        if not 0 <= min_margin <= 1:
            raise PredictionError(f"min_margin is {min_margin}; it must lie between 0 and 1")
        other = copy(self)
        other.min_margin = min_margin
        return other

    def judge(self, probabilities: Probabilities, speech: float | None = None) -> str:
        """Return the label that probabilities stand for, `unsure`, or `no speech`.

        Args:
            chances: float64 of shape (labels,).
            speech: probability that somebody speaks; None if that is not known.
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
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        engine: see `Predictor`.
        precision: `float32`, or `bfloat16` for more speed and less exact probabilities, but for close calls.

    Raises:
        CheckpointError: there is no checkpoint that can be used.
        PredictionError: there is no such device or engine.
    """
    folder = default_checkpoint() if checkpoint is None else checkpoint
    return Predictor(folder, device=device, engine=engine, precision=precision)
