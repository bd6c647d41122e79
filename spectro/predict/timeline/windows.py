"""A stream of samples -> utterances, and the windows in them.

A window shows one utterance and not the pause between two, as a picture does in training. It is trimmed and rendered by
the functions that render clips.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spectro.audio.recording import SILENT_DB, Waveform, trim
from spectro.audio.stream import LEAST_SOUND_S, Activity
from spectro.errors import PredictionError
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.picture.spectrogram import render


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How a recording is cut into windows, and how windows are merged.

    Args:
        hop_s: hop between the windows of an utterance, in seconds. Each window is as long as the checkpoint's
            picture.
        smooth_s: average a window's probabilities with those of windows whose centres are closer than this, in seconds,
            with linearly falling weights; 0 for no smoothing.
        silence_db: sound below this level is silence, in dB of full scale (frames of 20 ms). Steady noise counts as
            silence, too.
        min_pause_s: shortest pause that ends an utterance, in seconds.
    """

    hop_s: float = 0.5
    smooth_s: float = 2.0
    silence_db: float = SILENT_DB
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
        start: its first sample, counted from the start of the recording, at the working rate.
        samples: float32 of shape (samples,).
    """

    utterance: int
    start: int
    samples: Waveform

    @property
    def stop(self) -> int:
        """The first sample after it."""
        return self.start + len(self.samples)


class Cutter:
    """Cuts a stream of samples into the windows of its utterances.

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
        self._least = max(round(LEAST_SOUND_S * rate), spec.win_length)
        self._kept: Waveform = np.zeros(0, np.float32)  # from sample `self._first` on
        self._first = self._judged = self._utterance = 0
        self._begin = self._end = self._next = -1  # of the utterance: first sample, last sound, next window's first

    @property
    def samples_seen(self) -> int:
        """Number of samples received so far."""
        return self._first + len(self._kept)

    def add(self, samples: Waveform) -> Iterator[Window]:
        """Add samples of shape (samples,), and yield the windows that they complete."""
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
        """Yield the remaining windows at the end of the recording."""
        if self._begin >= 0:
            yield from self._close()

    def current(self) -> Window | None:
        """Return the newest window of the current utterance; None in silence, and at the very start of an utterance."""
        if self._begin < 0 or self._end - self._begin < self._least:
            return None
        return self._window(max(self._begin, self._end - self._length), self._end)

    def _close(self) -> Iterator[Window]:
        """Yield the last windows of the utterance: as many as fit, and one that ends with it."""
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
        """Drop samples that no window can need any more."""
        oldest = self._judged if self._begin < 0 else max(self._begin, min(self._next, self._end - self._length))
        self._kept, self._first = self._kept[oldest - self._first :], oldest


def render_samples(samples: Waveform, spec: SpectrogramSpec) -> Image:
    """Trim and render a piece of a recording, as is done for clips."""
    if spec.trim_db is not None:
        kept = trim(samples, sample_rate=spec.sample_rate, top_db=spec.trim_db)
        samples = kept if len(kept) >= spec.win_length else samples
    return render(samples, spec)
