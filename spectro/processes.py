"""Work in processes that an interrupt ends without a word of theirs."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TypeVar

from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from spectro.errors import WorkerError

AHEAD = 4  # items a process that are handed out before they are needed
IDLE_S = 300.0  # after which a process that has nothing to do ends, as when the one that asked was killed
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], count: int, *, ordered: bool = False
) -> Iterator[Result]:
    """Yield what `work` makes of each item, in the order in which it comes, or `ordered` as the items are.

    An interrupt of the whole group of processes (Ctrl-C) reaches this one alone. Whenever the iterator is left, what
    has been begun is finished, and the processes end.

    Args:
        work: a function that can be imported, or a `functools.partial` of one.
        items: taken as they are needed.
        count: processes; 1 works in this one.
        ordered: keep the order of the items.

    Raises:
        WorkerError: a process was killed.
    """
    if count == 1:
        yield from map(work, items)
        return
    pool = pool_of(count)
    remaining, waiting, started = iter(items), list[Future[Result]](), False
    try:
        while True:
            for item in islice(remaining, AHEAD * count - len(waiting)):
                with _born_deaf() if not started else nullcontext():
                    waiting.append(pool.submit(work, item))
                started = True
            if not waiting:
                return
            done = wait(waiting[:1] if ordered else waiting, return_when=FIRST_COMPLETED).done
            waiting = [future for future in waiting if future not in done]
            for future in done:
                yield future.result()
    except TerminatedWorkerError as error:
        raise WorkerError(
            "a worker process was killed, most likely for want of memory; run the same command again to go on (with "
            "fewer --workers)"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)


def pool_of(count: int) -> ProcessPoolExecutor:
    """Return a pool of processes that share the cores, hear of no interrupt, and end when they were idle for long."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    own = {name: os.environ.get(name, threads) for name in THREADS}
    return ProcessPoolExecutor(count, timeout=IDLE_S, initializer=_ignore_interrupts, env=own)


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Let processes that are started in the block hear of no interrupt, not even while they import what they need."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ignore_interrupts() -> None:
    """Be a process that works: whoever gave the work ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
