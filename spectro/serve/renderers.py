"""Renders concurrent uploads in separate processes, so that none waits for Python's global interpreter lock.

A single upload is rendered in this process, which starts sooner. A process that an upload kills is replaced, and the
upload is tried once more.
"""

import io
import threading
from collections import deque
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
        known = known_frames(file)
        samples = min(known or most, most) * file.channels
        if samples > max_samples:
            holds = "holds" if known else "does not tell its length, and may hold"
            raise AudioLengthError(
                f"{name_of(source)}: {holds} {samples / 1e6:.0f} million samples ({file.channels} channels at "
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
        self._pool: list[_Process] | None = None
        self._waiting: deque[SimpleQueue[_Process]] = deque()

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
            process = self._take()
            try:
                return process.render(source.getvalue(), predictor.checkpoint.spec, limits)
            finally:
                self._give(process)

    def shutdown(self) -> None:
        """End the processes."""
        for process in self._pool or ():
            process.end()

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

    def _take(self) -> "_Process":
        """Return a free process, or the next one that is given back when it is this thread's turn."""
        with self._lock:
            if self._pool is None:
                self._pool = [_Process(self._processes) for _ in range(self._processes)]
            if self._pool:
                return self._pool.pop()
            turn: SimpleQueue[_Process] = SimpleQueue()
            self._waiting.append(turn)
        return turn.get()

    def _give(self, process: "_Process") -> None:
        """Give a process to the thread that has waited longest; otherwise the same thread could always take it."""
        with self._lock:
            assert self._pool is not None
            if self._waiting:
                self._waiting.popleft().put(process)
            else:
                self._pool.append(process)


class _Process:
    """A process that renders one upload at a time; it is started when it is needed.

    Args:
        count: number of such processes, which share the cores.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._process: BaseProcess | None = None

    def render(self, content: bytes, spec: SpectrogramSpec, limits: Limits) -> Image:
        """Render the bytes of a recording, see `render_bytes`; try once more in a new process if this one is killed."""
        for _ in range(2):
            try:
                if self._process is None:
                    self._connection, end = Pipe()
                    self._process = started(_answer, end, self._count)
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
