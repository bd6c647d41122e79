"""A recording of any length -> its timeline: windows, smoothed and merged into segments.

Memory use does not depend on the length of the recording.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spectro.audio import stream
from spectro.audio.container import opened
from spectro.audio.recording import Waveform
from spectro.audio.source import Source, name_of
from spectro.engines.base import Probabilities, Scores
from spectro.errors import AudioError
from spectro.picture.spec import Image
from spectro.predict.batches import score_all
from spectro.predict.results import Row, Scorer, mean_scores, verdict
from spectro.predict.timeline.windows import Cutter, Window, WindowSettings, render_samples

SILENCE = "silence"
MAX_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class Segment(Row):
    """A stretch of a recording with one label, which may be `silence`.

    Args:
        channel: the channel, from 0; None for the mean of all.
    """

    channel: int | None = None

    def record(self, labels: Sequence[str], *, embeddings: bool = False) -> dict[str, Any]:
        """Return the segment as the columns of a timeline."""
        record = super().record(labels, embeddings=embeddings)
        return {"path": record.pop("path"), "channel": self.channel, **record}


def timeline(
    scorer: Scorer,
    source: Source,
    settings: WindowSettings | None = None,
    *,
    split_channels: bool = False,
    max_duration_s: float | None = None,
    batch_size: int = 8,
    on_block: Callable[[], object] | None = None,
) -> Iterator[Segment]:
    """Yield the segments of a recording, from start to end without gaps.

    Args:
        scorer: a `Predictor`.
        source: a path, an address, or a seekable binary file.
        settings: how to cut and merge windows; None for the defaults.
        split_channels: treat each channel as a party of its own, as in stereo recordings of calls; the segments of a
            channel follow those of the channel before.
        max_duration_s: longest duration accepted, in seconds; None for no limit.
        batch_size: pictures per batch.
        on_block: called for about each second that is read; an exception from it ends the timeline.

    Raises:
        AudioError: the recording has too many channels to be split, cannot be used, or cannot be read past some point;
            the segments before that point have been yielded.
    """
    options = settings or WindowSettings()
    spec = scorer.checkpoint.spec
    channels: Iterable[int | None] = range(_channels(source)) if split_channels else [None]
    for channel in channels:
        blocks = stream.blocks(source, sample_rate=spec.sample_rate, channel=channel, max_duration_s=max_duration_s)
        maker = Timeline(scorer, options, name_of(source), channel, batch_size)
        yield from maker.segments(_watched(blocks, on_block))
        _rewind(source)


@dataclass(frozen=True)
class _Scored:
    """A window's position and scores, without its samples; `speech` is NaN if the checkpoint has no speech detector."""

    utterance: int
    start: int
    stop: int
    probabilities: Probabilities
    speech: float

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2


class Timeline:
    """Makes the segments of one channel.

    Args:
        scorer: a `Predictor`.
        settings: how to cut and merge windows.
        path: path of the recording in the segments.
        channel: the channel in the segments.
        batch_size: pictures per batch.
    """

    def __init__(
        self, scorer: Scorer, settings: WindowSettings, path: str, channel: int | None, batch_size: int
    ) -> None:
        self._scorer, self._settings, self._batch_size = scorer, settings, batch_size
        self._spec = scorer.checkpoint.spec
        self._path, self._channel = path, channel
        self._cutter = Cutter(self._spec, settings)
        self._broken: AudioError | None = None

    def segments(self, blocks: Iterable[Waveform]) -> Iterator[Segment]:
        """Yield the segments of consecutive blocks of shape (samples,).

        Raises:
            AudioError: the blocks raised it; the segments before it are yielded first.
        """
        end = 0
        for segment in self._merged(self._smoothed(self._scored(blocks))):
            start = round(segment.start_s * self._spec.sample_rate)
            if start > end:
                yield self._silence(end, start)
            end = round(segment.end_s * self._spec.sample_rate)
            yield segment
        if self._cutter.samples_seen > end:
            yield self._silence(end, self._cutter.samples_seen)
        if self._broken is not None:
            raise self._broken

    def _windows(self, blocks: Iterable[Waveform]) -> Iterator[Window]:
        try:
            for block in blocks:
                yield from self._cutter.add(block)
        except AudioError as error:
            self._broken = error
        yield from self._cutter.finish()

    def _scored(self, blocks: Iterable[Waveform]) -> Iterator[_Scored]:
        for window, outcome in score_all(self._scorer, self._windows(blocks), self._draw, batch_size=self._batch_size):
            if not isinstance(outcome, Scores):
                raise outcome
            speech = np.nan if outcome.speech is None else float(outcome.speech[0])
            yield _Scored(window.utterance, window.start, window.stop, outcome.probabilities[0], speech)

    def _draw(self, window: Window) -> Image:
        return render_samples(window.samples, self._spec)

    def _smoothed(self, scored: Iterable[_Scored]) -> Iterator[_Scored]:
        """Average each window with those around it."""
        if not self._settings.smooth_s:
            yield from scored
            return
        reach = self._settings.smooth_s * self._spec.sample_rate
        around: deque[_Scored] = deque()
        ready = 0
        for one in scored:
            around.append(one)
            while ready < len(around) and one.middle - around[ready].middle >= reach:
                yield _average(around, around[ready], reach)
                ready += 1
                while around[ready].middle - around[0].middle >= reach:
                    around.popleft()
                    ready -= 1
        for waiting in list(around)[ready:]:
            yield _average(around, waiting, reach)

    def _merged(self, scored: Iterable[_Scored]) -> Iterator[Segment]:
        """Join neighbours with the same label; within an utterance, the border is half-way between their centres."""
        last: _Scored | None = None
        begin, count = 0.0, 0
        probabilities, speech = np.zeros(len(self._scorer.checkpoint.labels)), 0.0
        for one in scored:
            if last is None:
                begin = one.start
            elif last.utterance != one.utterance or self._label(last) != self._label(one):
                same = last.utterance == one.utterance
                border = (last.middle + one.middle) / 2 if same else last.stop
                yield self._segment(self._label(last), probabilities / count, speech / count, begin, border)
                begin, count, probabilities, speech = border if same else one.start, 0, 0 * probabilities, 0.0
            last, count, probabilities, speech = one, count + 1, probabilities + one.probabilities, speech + one.speech
        if last is not None:
            yield self._segment(self._label(last), probabilities / count, speech / count, begin, last.stop)

    def _label(self, one: _Scored) -> str:
        return self._scorer.judge(one.probabilities, None if np.isnan(one.speech) else one.speech)

    def _segment(self, label: str, probabilities: Probabilities, speech: float, begin: float, end: float) -> Segment:
        return Segment(
            path=self._path,
            channel=self._channel,
            start_s=self._seconds(begin),
            end_s=self._seconds(end),
            **verdict(self._scorer, mean_scores(probabilities, speech), label),
        )

    def _silence(self, start: int, stop: int) -> Segment:
        return Segment(
            path=self._path,
            channel=self._channel,
            start_s=self._seconds(start),
            end_s=self._seconds(stop),
            label=SILENCE,
        )

    def _seconds(self, samples: float) -> float:
        return round(samples / self._spec.sample_rate, 3)


def _average(around: Iterable[_Scored], one: _Scored, reach: float) -> _Scored:
    others = list(around)
    weights = [max(0.0, 1 - abs(other.middle - one.middle) / reach) for other in others]
    return replace(
        one,
        probabilities=np.average([other.probabilities for other in others], axis=0, weights=weights),
        speech=float(np.average([other.speech for other in others], weights=weights)),
    )


def _channels(source: Source) -> int:
    with opened(source, max_duration_s=None) as file:
        count = int(file.channels)
    _rewind(source)
    if count > MAX_CHANNELS:
        raise AudioError(f"{name_of(source)}: has {count} channels; at most {MAX_CHANNELS} can be split")
    return count


def _watched(blocks: Iterator[Waveform], on_block: Callable[[], object] | None) -> Iterator[Waveform]:
    for block in blocks:
        if on_block is not None:
            on_block()
        yield block


def _rewind(source: Source) -> None:
    if not isinstance(source, str | os.PathLike):
        source.seek(0)
