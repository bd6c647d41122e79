"""Runs commands in separate processes, forked from a server that has already imported the networks' libraries.

Importing these libraries takes longer than many runs, so it is done once.
"""

import importlib
import multiprocessing as mp
import os
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import yaml
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

from spectro.files import write_bytes

CLI = "spectro.cli"
_ONE_AT_A_TIME = threading.Lock()
"""Starting a process collects the exit codes of others, and each code can be collected only once."""
_CONTEXT: Any = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")


def command(verb: str, given: dict[str, Any], config: Path, log: Path, threads: int) -> int:
    """Run `spectro VERB --config CONFIG` in a separate process; returns its exit code.

    The process ends when its parent ends, for whatever reason, so that no old run still writes when a study is started
    again.

    Args:
        verb: the verb.
        given: its settings; they are written to `config`.
        config: YAML file, kept next to the result.
        log: file to which the process's output is appended.
        threads: number of threads that it computes with.
    """
    write_bytes(config, yaml.safe_dump(given, sort_keys=False).encode())
    process = context().Process(target=_run, args=(verb, config, log, threads))
    with _ONE_AT_A_TIME:
        process.start()
    wait([process.sentinel])
    with _ONE_AT_A_TIME:
        process.join()
        return int(process.exitcode)


def context() -> Any:
    """Return the context that starts processes; where the system can, they fork from a server with the libraries."""
    if hasattr(_CONTEXT, "set_forkserver_preload"):
        _CONTEXT.set_forkserver_preload(["spectro.train.finetune", "spectro.evaluate.evaluate"])
    return _CONTEXT


def be_like_a_command(log: Path) -> None:
    """Make a forked process behave like one started from a command line, with the log as its output."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    mp.set_start_method(None, force=True)  # otherwise each process that reads pictures would import everything again


def _run(verb: str, config: Path, log: Path, threads: int) -> None:
    """Run the verb in the new process."""
    be_like_a_command(log)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that this one starts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            sys.exit(importlib.import_module(CLI).run_verb(verb, ["--config", str(config)]))
    finally:
        get_reusable_executor().shutdown(wait=True)  # otherwise the exit waits for joblib's idle workers
        sys.stdout.flush()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
