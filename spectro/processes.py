"""Work in processes that end silently on an interrupt."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

from joblib import cpu_count
from joblib.externals.loky.backend.process import LokyProcess
from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from spectro.errors import WorkerError

AHEAD = 4  # items per process that are handed out in advance
IDLE_S = 300.0  # an idle process ends after this time, such as when its parent was killed
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return how many cores this process may use, by its affinity mask and its container's limits."""
    return int(cpu_count())


def threads() -> int:
    """Return how many threads this process may use: OMP_NUM_THREADS, or the number of its cores."""
    threads_set = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(threads_set) if threads_set.isdigit() and int(threads_set) > 0 else cores()


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], count: int, *, ordered: bool = False
) -> Iterator[Result]:
    """Yield the result of `work` for each item, in order of completion, or in item order if `ordered`.

    An interrupt of the process group (Ctrl-C) reaches only this process. Whenever the iterator is left, work in
    progress is finished and the processes end.

    Args:
        work: an importable function, or a `functools.partial` of one.
        items: the items, consumed as needed.
        count: number of processes; 1 works in this process.
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
            "a worker process was killed, most likely because memory ran out; run the same command again to continue "
            "(with fewer --workers)"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)


def pool_of(count: int) -> ProcessPoolExecutor:
    """Return a pool of processes that share the cores, ignore interrupts, and end after being idle for `IDLE_S`."""
    return ProcessPoolExecutor(count, timeout=IDLE_S, initializer=_ignore_interrupts, env=_share(count))


def started(work: Callable[[Connection], None], connection: Connection, count: int) -> LokyProcess:
    """Start a process that runs `work` and ignores interrupts, one of `count` that share the cores."""
    process = LokyProcess(target=_deaf, args=(work, connection), daemon=True, env=_share(count))
    process.start()
    return process


def _share(count: int) -> dict[str, str]:
    """Return environment variables that give each of `count` processes its share of the cores."""
    threads = str(max(1, cores() // count))
    return {name: os.environ.get(name, threads) for name in THREADS}


def _deaf(work: Callable[[Connection], None], connection: Connection) -> None:
    _ignore_interrupts()
    work(connection)


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Make processes started in the block ignore interrupts from the start, even during their imports."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ignore_interrupts() -> None:
    """Ignore interrupts in a worker process, which its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
