"""The command line in processes that can be killed, forked from a server that has imported what they need.

Importing the network libraries takes longer than most of these runs; the server is the one that studies use. A process
to be killed kills itself (SIGKILL) as soon as a condition holds, so the moment does not depend on load.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from spectro.study import runner

Condition = Callable[[], bool]


def has_files(folder: Path, pattern: str, count: int = 1) -> Condition:
    """Return the condition that a folder holds at least `count` files that match a pattern."""
    return partial(_has_files, folder, pattern, count)


def spectro(arguments: list[str], log: Path) -> str:
    """Run `spectro ARGUMENTS`, which must exit with 0; return its output."""
    log.unlink(missing_ok=True)
    code = _run(arguments, log, None, None)
    assert code == 0, log.read_text()
    return log.read_text()


def killed(arguments: list[str], log: Path, when: Condition, before: Callable[[], None] | None = None) -> None:
    """Run `spectro ARGUMENTS` until it is killed with SIGKILL.

    Args:
        arguments: the verb and its options.
        log: file for its output.
        when: condition on which it is killed; a function that can be pickled.
        before: called first in the process.
    """
    code = _run(arguments, log, when, before)
    assert code == -signal.SIGKILL, f"it exited with {code} before it was killed: {log.read_text()}"


def _run(arguments: list[str], log: Path, when: Condition | None, before: Callable[[], None] | None) -> int:
    process = runner.context().Process(target=_be_the_command, args=(arguments, log, when, before))
    process.start()
    process.join()
    return int(process.exitcode)


def _be_the_command(arguments: list[str], log: Path, when: Condition | None, before: Callable[[], None] | None) -> None:
    os.setsid()  # processes that it starts are killed with it
    runner.be_like_a_command(log)
    if before is not None:
        before()
    if when is not None:
        threading.Thread(target=_kill, args=(when,), daemon=True).start()
    from spectro.cli import main

    sys.exit(main(arguments))


def _kill(when: Condition) -> None:
    while not when():
        time.sleep(0.002)
    os.killpg(0, signal.SIGKILL)


def _has_files(folder: Path, pattern: str, count: int) -> bool:
    return len(list(folder.glob(pattern))) >= count
