"""Uploads are drawn in processes of their own while there are several, so that none waits for Python's lock.

A lone one is drawn here, which starts sooner. Processes that an upload kills are replaced, and what they were drawing
is tried once more, each upload in a process of its own.
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
    """Refuse a recording that is short, but holds many channels or samples a second, before it is decoded.

    Raises:
        AudioError: it holds too many, or cannot be opened.
    """
    with opened(source, max_duration_s=None) as file:
        # one that does not tell its length is read no further than the longest that is allowed
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
    """Draw a recording of which these are the bytes, in another process: uint8 of shape `spec.shape`.

    Raises:
        AudioError: it cannot be used, or holds too many samples.
    """
    source = io.BytesIO(content)
    check_samples(source, limits.max_samples, limits.max_duration_s)
    return spectrogram.render(spectrogram.read(source, spec, max_duration_s=limits.max_duration_s), spec)


class Renderers:
    """Draws uploads, for several threads at a time.

    Args:
        processes: that draw; 0 for none but this one.
    """

    def __init__(self, processes: int) -> None:
        self._processes, self._lock = processes, threading.Lock()
        self._busy = 0
        self._pool: Executor | None = None

    def render(self, source: io.BytesIO, predictor: Predictor, limits: Limits) -> Image:
        """Draw what a predictor sees of an upload: uint8 of shape `checkpoint.spec.shape`.

        Raises:
            AudioError: it cannot be used.
            SpectroError: it has killed two processes.
        """
        with self._counted() as others:
            if not self._processes or not others:
                check_samples(source, limits.max_samples, limits.max_duration_s)
                return predictor.render(source)
            work = partial(render_bytes, source.getvalue(), predictor.checkpoint.spec, limits)
            pool = self._running()
            try:
                image: Image = pool.submit(work).result()
            except BrokenProcessPool:  # by this one, or by another that was drawn beside it
                self._forget(pool)
                return self._alone(work)
            return image

    def _alone(self, work: Callable[[], Image]) -> Image:
        """Draw in a process of its own, which no other upload can kill."""
        pool = pool_of(1)
        try:
            image: Image = pool.submit(work).result()
        except BrokenProcessPool as error:
            raise SpectroError("processes that drew this upload were killed, perhaps for want of memory") from error
        finally:
            pool.shutdown()
        return image

    def shutdown(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()

    @contextmanager
    def _counted(self) -> Iterator[int]:
        """Count an upload while it is drawn; yields how many others are being drawn."""
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
        """Start anew next time, unless another thread has seen to that."""
        with self._lock:
            if self._pool is pool:
                self._pool = None
