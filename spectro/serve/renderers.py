"""Renders concurrent uploads in separate processes, so that none waits for Python's global interpreter lock.

A single upload is rendered in this process, which starts sooner. A process that an upload kills is replaced, and the
upload is tried once more.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import BinaryIO

from spectro.audio.container import known_frames, opened
from spectro.audio.source import name_of
from spectro.errors import AudioLengthError, SpectroError
from spectro.picture import spectrogram
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.predict.predictor import Predictor
from spectro.processes import started
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
        self._pool: SimpleQueue[_Process] | None = None

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
            pool = self._running()
            process = pool.get()
            try:
                return process.render(source.getvalue(), predictor.checkpoint.spec, limits)
            finally:
                pool.put(process)

    def shutdown(self) -> None:
        """End the processes."""
        while self._pool is not None and not self._pool.empty():
            self._pool.get().end()

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

    def _running(self) -> "SimpleQueue[_Process]":
        with self._lock:
            if self._pool is None:
                self._pool = SimpleQueue()
                for _ in range(self._processes):
                    self._pool.put(_Process(self._processes))
            return self._pool


class _Process:
    """A process that renders one upload at a time; it is started when it is needed.

    Args:
        others: number of processes that share the cores.
    """

    def __init__(self, others: int) -> None:
        self._others = others
        self._process: BaseProcess | None = None

    def render(self, content: bytes, spec: SpectrogramSpec, limits: Limits) -> Image:
        """Render the bytes of a recording, see `render_bytes`; try once more in a new process if this one is killed."""
        for _ in range(2):
            try:
                if self._process is None:
                    self._connection, end = Pipe()
                    self._process = started(_answer, end, others=self._others)
                    end.close()
                self._connection.send((render_bytes, spec, limits))
                self._connection.send_bytes(content)
                found: Image | Exception = self._connection.recv()
            except (EOFError, OSError):
                self.end()
            else:
                if isinstance(found, Exception):
                    raise found
                return found
        raise SpectroError("processes that rendered this upload were killed, perhaps for lack of memory")

    def end(self) -> None:
        """End the process, unless it is not running."""
        if self._process is not None:
            self._connection.close()
            self._process.join()
            self._process = None


def _answer(connection: Connection) -> None:
    """Render what arrives, until the service closes its end of the connection or is killed."""
    with suppress(EOFError, OSError):
        while True:
            render, spec, limits = connection.recv()
            try:
                found = render(connection.recv_bytes(), spec, limits)
            except Exception as error:  # noqa: BLE001 - raised where the upload is waited for
                found = error
            connection.send(found)
