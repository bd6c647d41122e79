"""Threads in which clients take turns, and work that is dropped when its client disconnects."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")

CLIENT: ContextVar[str] = ContextVar("CLIENT", default="")
"""The client whose request is being answered."""


class FairThreads(Executor):
    """Threads in which clients take turns, so that no client waits for all the work of another.

    Args:
        threads: number of threads.
        name: prefix of the threads' names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run work when it is the current client's turn; work that is cancelled before is never run."""
        future: Future[Result] = Future()
        with self._lock:
            self._waiting.setdefault(CLIENT.get(), deque()).append((future, partial(fn, *args, **kwargs)))
        self._threads.submit(self._take)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the threads once all work is done."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def _take(self) -> None:
        with self._lock:
            client, queue = self._waiting.popitem(last=False)
            future, work = queue.popleft()
            if queue:
                self._waiting[client] = queue  # at the end of the queue
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)


async def unless_gone(work: Coroutine[Any, Any, Result], gone: Awaitable[None]) -> Result | None:
    """Return the result of `work`; if `gone` finishes first, cancel it and return None."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for one in (working, watching):
            one.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
