"""Renders concurrent uploads in separate processes, so that none waits for Python's global interpreter lock.

A single upload is rendered in this process, which starts sooner. Processes that an upload kills are replaced, and the
uploads that they were rendering are tried once more, each in a process of its own.
"""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

from spectro.audio.container import known_frames, opened
from spectro.audio.source import name_of
from spectro.errors import AudioLengthError, SpectroError
from spectro.picture import spectrogram
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.predict.predictor import Predictor
from spectro.processes import pool_of
from spectro.serve.limits import Limits


def check_samples(source: BinaryIO, max_samples: int, max_duration_s: float) -> None:
    """Refuse a recording that is short but has too many channels or samples a second, before it is decoded.

    Raises:
        AudioError: it has too many samples, or cannot be opened.
    """
    with opened(source, max_duration_s=None) as file:
        # without a length in its header, it is read no further than the longest duration allowed
        most = int(max_duration_s * file.samplerate)
        samples = min(known_frames(file) or most, most) * file.channels
        if samples > max_samples:
            raise AudioLengthError(
                f"{name_of(source)}: holds {samples / 1e6:.0f} million samples ({file.channels} channels at "
                f"{file.samplerate} Hz), more than the limit of {max_samples / 1e6:g} million; "
                "convert it to one channel at 16000 Hz"
            )
    source.seek(0)


def render_bytes(content: bytes, spec: SpectrogramSpec, limits: Limits) -> Image:
    """Render the bytes of a recording, in another process: uint8 of shape `spec.shape`.

    Raises:
        AudioError: it cannot be used, or has too many samples.
    """
    source = io.BytesIO(content)
    check_samples(source, limits.max_samples, limits.max_duration_s)
    return spectrogram.render(spectrogram.read(source, spec, max_duration_s=limits.max_duration_s), spec)


class Renderers:
    """Renders uploads, for several threads at a time.

    Args:
        processes: number of processes that render; 0 to use this one only.
    """

    def __init__(self, processes: int) -> None:
        self._processes, self._lock = processes, threading.Lock()
        self._busy = 0
        self._pool: Executor | None = None

    def render(self, source: io.BytesIO, predictor: Predictor, limits: Limits) -> Image:
        """Render an upload as the predictor's network sees it: uint8 of shape `checkpoint.spec.shape`.

        Raises:
            AudioError: it cannot be used.
            SpectroError: it killed two processes.
        """
        with self._counted() as others:
            if not self._processes or not others:
                check_samples(source, limits.max_samples, limits.max_duration_s)
                return predictor.render(source)
            work = partial(render_bytes, source.getvalue(), predictor.checkpoint.spec, limits)
            pool = self._running()
            try:
                image: Image = pool.submit(work).result()
            except BrokenProcessPool:  # broken by this upload or by a concurrent one
                self._forget(pool)
                return self._alone(work)
            return image

    def _alone(self, work: Callable[[], Image]) -> Image:
        """Render in a separate process, which no other upload can kill."""
        pool = pool_of(1)
        try:
            image: Image = pool.submit(work).result()
        except BrokenProcessPool as error:
            raise SpectroError("processes that rendered this upload were killed, perhaps for lack of memory") from error
        finally:
            pool.shutdown()
        return image

    def shutdown(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()

    @contextmanager
    def _counted(self) -> Iterator[int]:
        """Count an upload while it is rendered; yields how many others are being rendered."""
        with self._lock:
            others, self._busy = self._busy, self._busy + 1
        try:
            yield others
        finally:
            with self._lock:
                self._busy -= 1

    def _running(self) -> Executor:
        with self._lock:
            self._pool = self._pool or pool_of(self._processes)
            return self._pool

    def _forget(self, pool: Executor) -> None:
        """Start a new pool next time, unless another thread already has."""
        with self._lock:
            if self._pool is pool:
                self._pool = None
