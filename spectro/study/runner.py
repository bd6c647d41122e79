"""Commands in processes of their own, forked from a server that has imported what they need.

Importing the networks' libraries takes longer than many a run does; here it is done once.
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
"""Starting a process reads the exit codes of others, and each can be read once only."""
_CONTEXT: Any = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")


def command(verb: str, given: dict[str, Any], config: Path, log: Path, threads: int) -> int:
    """Run `spectro VERB --config CONFIG` in a process of its own; returns its exit code.

    It ends with the process that asked for it, however that ends, so that a run that is started again has its folder to
    itself.

    Args:
        verb: the verb.
        given: its settings, which are written to `config`.
        config: YAML file, kept beside the result.
        log: file that the process's output is added to.
        threads: how many threads it computes with.
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
    """Return how processes are started: by a server that has imported what most verbs need, where there are such."""
    if hasattr(_CONTEXT, "set_forkserver_preload"):
        _CONTEXT.set_forkserver_preload(["spectro.train.finetune", "spectro.evaluate.evaluate"])
    return _CONTEXT


def be_like_a_command(log: Path) -> None:
    """Make a process that the server has forked like one that was started by a command line, with the log as output."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    mp.set_start_method(None, force=True)  # or each process that reads pictures would import everything again


def _run(verb: str, config: Path, log: Path, threads: int) -> None:
    """Be the process: take the log for output, and do as the command line does."""
    be_like_a_command(log)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that this one starts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            sys.exit(importlib.import_module(CLI).run_verb(verb, ["--config", str(config)]))
    finally:
        get_reusable_executor().shutdown(wait=True)  # joblib's workers would be waited for until they are bored
        sys.stdout.flush()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
