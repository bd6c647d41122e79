"""Batches of pictures from concurrent requests."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from spectro.engines.base import Scores
from spectro.picture.spec import Image


class Batcher:
    """Scores pictures in batches: those that arrive while the network is busy form the next batch.

    No request waits for a batch to fill, so a single request is answered as fast as without batching.

    Args:
        score: scores a batch of pictures; runs in its own thread.
        max_batch: largest number of pictures in a batch.
        observe: called with the size of each batch.
    """

    def __init__(
        self, score: Callable[[Sequence[Image]], Scores], max_batch: int, observe: Callable[[int], object]
    ) -> None:
        self._score, self._max_batch, self._observe = score, max_batch, observe
        self._waiting: asyncio.Queue[tuple[Image, asyncio.Future[Scores]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None

    async def scores(self, picture: Image) -> Scores:
        """Return the scores of one picture."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        answer: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((picture, answer))
        return await answer

    async def close(self) -> None:
        """Stop, and cancel waiting pictures."""
        if self._task is not None:
            self._task.cancel()
        while not self._waiting.empty():
            self._waiting.get_nowait()[1].cancel()
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._max_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(picture, answer) for picture, answer in batch if not answer.done()]  # drop cancelled ones
            if not batch:
                continue
            self._observe(len(batch))
            try:
                found = await loop.run_in_executor(self._thread, self._score, [picture for picture, _ in batch])
            except Exception as error:  # noqa: BLE001 - raised in all waiting requests; the next batch may succeed
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for place, (_, answer) in enumerate(batch):
                if not answer.done():
                    answer.set_result(found.at(place))
