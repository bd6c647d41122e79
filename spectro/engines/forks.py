"""Engines in a forked process: the threads that they compute with stay behind in the parent."""

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol


class Native(Protocol):
    """What an engine must provide to be used after a fork."""

    lock: Any
    """An RLock: its holder has the network to itself."""
    native: Sequence[Any]
    """Objects that wait for threads of their own when they are destroyed."""


class Forks:
    """The engines of a process, which keep working when it is forked, although their threads stay behind.

    A loaded engine can still be used in the forked process: PyTorch with one thread, as it would wait forever for the
    others; ONNX Runtime and OpenVINO as they are, but they are never destroyed, as they would wait for their threads.
    These two cannot be started again in the forked process if they ran before the fork.
    """

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.inherited: frozenset[str] = frozenset()
        self._engines: weakref.WeakSet[Native] = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def add(self, kind: str, engine: Native) -> None:
        """Register a new engine."""
        self.started.add(kind)
        self._engines.add(engine)

    def _begin(self) -> None:
        self.inherited = frozenset(self.started)
        for engine in list(self._engines):
            engine.lock = threading.RLock()  # the thread that held it may not exist here
            for one in engine.native:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
        if "torch" in self.started:
            import torch

            torch.set_num_threads(1)


FORKS = Forks()
