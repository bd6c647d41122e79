"""A recording of any length -> what is heard in its course: windows, smoothed and merged into segments.

Sound is told from silence first, and windows are laid into the stretches of sound (utterances), so that a picture
shows one utterance and not the pause between two, as it does in training. What a window shows goes through the same
trimming and the same picture-making as a clip. Memory stays the same, however long the recording is.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spectro.errors import AudioError, PredictionError
from spectro.predict.rows import Chances, Row, Scorer, Scores, score_all, verdict
from spectro.signal import stream
from spectro.signal.audio import Source, Waveform, name_of, opened, trim
from spectro.signal.spectrogram import Image, SpectrogramSpec, render
from spectro.signal.stream import Activity

SILENCE = "silence"
MIN_SOUND_S = 0.25


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How a recording is cut into windows, and windows are merged.

    Args:
        hop_s: distance between the windows of an utterance, in seconds; each is as long as the checkpoint's picture.
        smooth_s: a window's probabilities are averaged with those of windows whose middles lie less than this away,
            in seconds, with weights that fall linearly; 0 for none.
        silence_db: sound below this level is silence, in dB of full scale (20 ms frames); steady noise is, too.
        min_pause_s: a shorter pause does not end an utterance, in seconds.
    """

    hop_s: float = 0.5
    smooth_s: float = 2.0
    silence_db: float = -65.0
    min_pause_s: float = 0.4

    def __post_init__(self) -> None:
        for name, least in (("hop_s", 0.05), ("smooth_s", 0.0), ("min_pause_s", 0.0)):
            if not least <= getattr(self, name) <= 3600:
                raise PredictionError(f"{name} is {getattr(self, name)}; it must lie between {least:g} and 3600 s")
        if not -120 <= self.silence_db < 0:
            raise PredictionError(f"silence_db is {self.silence_db}; it must lie between -120 and 0 dB of full scale")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of an utterance.

    Args:
        utterance: number of the utterance in the recording, from 0.
        start: its first sample, counted from the recording's begin, at the working rate.
        samples: float32 of shape (samples,).
    """

    utterance: int
    start: int
    samples: Waveform

    @property
    def stop(self) -> int:
        """The first sample after it."""
        return self.start + len(self.samples)


@dataclass(frozen=True, kw_only=True)
class Segment(Row):
    """A stretch of a recording in which one thing is heard; `label` may be `silence`.

    Args:
        channel: which channel it is about, from 0; None for the mean of all.
    """

    channel: int | None = None

    def record(self, labels: Sequence[str], *, embeddings: bool = False) -> dict[str, Any]:
        """Return the segment as the columns of a timeline."""
        record = super().record(labels, embeddings=embeddings)
        return {"path": record.pop("path"), "channel": self.channel, **record}


class Cutter:
    """Cuts sound into the windows of its utterances, as it comes.

    Args:
        spec: the checkpoint's spec.
        settings: how to cut.
    """

    def __init__(self, spec: SpectrogramSpec, settings: WindowSettings) -> None:
        rate = spec.sample_rate
        self._activity = Activity(rate, settings.silence_db)
        self._length = spec.width * spec.hop_length
        self._hop = max(1, round(settings.hop_s * rate))
        self._pause = round(settings.min_pause_s * rate)
        self._least = max(round(MIN_SOUND_S * rate), spec.win_length)
        self._kept: Waveform = np.zeros(0, np.float32)  # from sample `self._first` on
        self._first = self._judged = self._utterance = 0
        self._begin = self._end = self._next = -1  # of the utterance: first sample, last sound, next window's first

    @property
    def heard(self) -> int:
        """Samples that have come."""
        return self._first + len(self._kept)

    def add(self, samples: Waveform) -> Iterator[Window]:
        """Yield the windows that are whole once samples of shape (samples,) have come."""
        self._kept = np.concatenate([self._kept, samples])
        for sound in self._activity.add(samples):
            frame_start, self._judged = self._judged, self._judged + self._activity.frame
            if sound:
                if self._begin < 0:
                    self._begin = self._next = frame_start
                self._end = self._judged
                while self._end - self._next >= self._length + self._hop:
                    yield self._window(self._next, self._next + self._length)
                    self._next += self._hop
            elif self._begin >= 0 and self._judged - self._end > self._pause:
                yield from self._close()
        self._forget()

    def finish(self) -> Iterator[Window]:
        """Yield the windows that are left at the end of the recording."""
        if self._begin >= 0:
            yield from self._close()

    def current(self) -> Window | None:
        """Return the newest window of the utterance that goes on; None in silence, and at an utterance's very begin."""
        if self._begin < 0 or self._end - self._begin < self._least:
            return None
        return self._window(max(self._begin, self._end - self._length), self._end)

    def _close(self) -> Iterator[Window]:
        """Yield the utterance's last windows: as many as fit, and one that ends with it."""
        if self._end - self._begin >= self._least:
            while self._next + self._length < self._end:
                yield self._window(self._next, self._next + self._length)
                self._next += self._hop
            yield self._window(max(self._begin, self._end - self._length), self._end)
            self._utterance += 1
        self._begin = -1

    def _window(self, start: int, stop: int) -> Window:
        samples = self._kept[start - self._first : stop - self._first].copy()
        return Window(utterance=self._utterance, start=start, samples=samples)

    def _forget(self) -> None:
        """Drop what no window can need any more."""
        oldest = self._judged if self._begin < 0 else max(self._begin, min(self._next, self._end - self._length))
        self._kept, self._first = self._kept[oldest - self._first :], oldest


def timeline(
    scorer: Scorer,
    source: Source,
    settings: WindowSettings | None = None,
    *,
    split_channels: bool = False,
    max_duration_s: float | None = None,
    batch_size: int = 8,
) -> Iterator[Segment]:
    """Yield what is heard in the course of a recording, from its begin to its end without gaps.

    Args:
        scorer: a `Predictor`.
        source: a path, or a seekable binary file.
        settings: how to cut and merge; None for the defaults.
        split_channels: each channel is a party of its own, as in stereo recordings of calls; the segments of one
            channel follow those of the one before.
        max_duration_s: longest duration accepted, in seconds; None for no limit.
        batch_size: pictures that the network takes at a time.

    Raises:
        AudioError: the recording cannot be used, or not from some moment on; the segments before it have been yielded.
    """
    options = settings or WindowSettings()
    spec = scorer.checkpoint.spec
    channels = _channels(source) if split_channels else 1
    for channel in range(channels):
        blocks = stream.blocks(
            source, sample_rate=spec.sample_rate, split_channels=split_channels, max_duration_s=max_duration_s
        )
        maker = Timeline(scorer, options, name_of(source), channel if split_channels else None, batch_size)
        yield from maker.segments(block[:, channel] for block in blocks)
        _rewind(source)


@dataclass(frozen=True)
class _Scored:
    """A window without its sound: what it says, and when."""

    utterance: int
    start: int
    stop: int
    chances: Chances

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2


class Timeline:
    """Makes the segments of one channel.

    Args:
        scorer: a `Predictor`.
        settings: how to cut and merge.
        path: what segments call the recording.
        channel: what they call the channel.
        batch_size: pictures that the network takes at a time.
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
        """Yield the segments of blocks of shape (samples,) that follow each other.

        Raises:
            AudioError: whatever the blocks raised, after the segments before it.
        """
        end = 0
        for segment in self._merged(self._smoothed(self._scored(blocks))):
            start = round(segment.start_s * self._spec.sample_rate)
            if start > end:
                yield self._silence(end, start)
            end = round(segment.end_s * self._spec.sample_rate)
            yield segment
        if self._cutter.heard > end:
            yield self._silence(end, self._cutter.heard)
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
            yield _Scored(window.utterance, window.start, window.stop, outcome.probabilities[0])

    def _draw(self, window: Window) -> Image:
        return draw_samples(window.samples, self._spec)

    def _smoothed(self, scored: Iterable[_Scored]) -> Iterator[_Scored]:
        """Average each with those around it."""
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
        """Join neighbours of one label; between two of an utterance the border lies half-way between their middles."""
        last: _Scored | None = None
        begin, total, count = 0.0, np.zeros(len(self._scorer.checkpoint.labels)), 0
        for one in scored:
            if last is None:
                begin = one.start
            elif last.utterance != one.utterance or self._label(last) != self._label(one):
                same = last.utterance == one.utterance
                border = (last.middle + one.middle) / 2 if same else last.stop
                yield self._segment(self._label(last), total / count, begin, border)
                begin, total, count = border if same else one.start, 0 * total, 0
            last, total, count = one, total + one.chances, count + 1
        if last is not None:
            yield self._segment(self._label(last), total / count, begin, last.stop)

    def _label(self, one: _Scored) -> str:
        return self._scorer.judge(one.chances)

    def _segment(self, label: str, chances: Chances, begin: float, end: float) -> Segment:
        return Segment(
            path=self._path,
            channel=self._channel,
            start_s=self._seconds(begin),
            end_s=self._seconds(end),
            **(verdict(self._scorer, chances) | {"label": label}),
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


def draw_samples(samples: Waveform, spec: SpectrogramSpec) -> Image:
    """Draw a piece of a recording as a clip is drawn: trimmed, then rendered."""
    if spec.trim_db is not None:
        kept = trim(samples, sample_rate=spec.sample_rate, top_db=spec.trim_db)
        samples = kept if len(kept) >= spec.win_length else samples
    return render(samples, spec)


def _average(around: Iterable[_Scored], one: _Scored, reach: float) -> _Scored:
    others = list(around)
    weights = [max(0.0, 1 - abs(other.middle - one.middle) / reach) for other in others]
    return replace(one, chances=np.average([other.chances for other in others], axis=0, weights=weights))


def _channels(source: Source) -> int:
    with opened(source, max_duration_s=None) as file:
        count = int(file.channels)
    _rewind(source)
    return count


def _rewind(source: Source) -> None:
    if not isinstance(source, str | os.PathLike):
        source.seek(0)
