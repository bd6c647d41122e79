"""Engines in a process that was forked: the threads that they compute with stay behind in the one before."""

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol


class Native(Protocol):
    """What an engine must tell of itself for that."""

    lock: Any
    """An RLock: who has it has the network to himself."""
    native: Sequence[Any]
    """What has threads of its own that it waits for when it goes."""


class Forks:
    """What must be known of engines when a process is forked: the threads that they compute with stay behind.

    What is loaded goes on to answer: PyTorch with one thread, as it would wait for the others for ever; ONNX Runtime
    and OpenVINO as they are, but they are never let go of, as they would wait for theirs. These two cannot be started
    anew where they ran before.
    """

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.inherited: frozenset[str] = frozenset()
        self._engines: weakref.WeakSet[Native] = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def add(self, kind: str, engine: Native) -> None:
        """Take note of an engine that is made."""
        self.started.add(kind)
        self._engines.add(engine)

    def _begin(self) -> None:
        self.inherited = frozenset(self.started)
        for engine in list(self._engines):
            engine.lock = threading.RLock()  # a thread that had it is not here
            for one in engine.native:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
        if "torch" in self.started:
            import torch

            torch.set_num_threads(1)


FORKS = Forks()
