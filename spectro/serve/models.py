"""The checkpoints of a service; each is loaded on its first request, and has its own batches."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from spectro.errors import CheckpointError
from spectro.predict.predictor import Predictor
from spectro.serve.batching import Batcher


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint.

    Args:
        name: its name in requests, which is the name of its folder.
        predictor: renders and scores.
        batcher: scores in batches.
    """

    name: str
    predictor: Predictor
    batcher: Batcher


class Models:
    """Checkpoints by name; the first is the default.

    Args:
        folders: checkpoint folders with distinct names.
        load: loads a predictor from a folder.
        max_batch: largest number of pictures in a batch.
        observe: called with the size of each batch.

    Raises:
        CheckpointError: two folders have the same name, or the default cannot be loaded.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        load: Callable[[Path], Predictor],
        max_batch: int,
        observe: Callable[[int], object],
    ) -> None:
        self._folders = {folder.resolve().name: folder for folder in folders}
        if len(self._folders) < len(folders):
            raise CheckpointError("two checkpoint folders have the same name; rename one")
        self._make, self._max_batch, self._observe = load, max_batch, observe
        self._loaded: dict[str, Model] = {}
        self._loading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "loading")
        self.default = self._load(next(iter(self._folders)))

    @property
    def names(self) -> list[str]:
        """All names, the default first."""
        return list(self._folders)

    async def get(self, name: str | None = None) -> Model:
        """Return a model; None for the default.

        Raises:
            KeyError: there is no model of this name.
            CheckpointError: it cannot be loaded.
        """
        name = name or self.default.name
        if name not in self._loaded:
            if name not in self._folders:
                raise KeyError(name)
            async with self._loading:
                if name not in self._loaded:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._load, name)
        return self._loaded[name]

    async def close(self) -> None:
        """Stop all batches."""
        for model in self._loaded.values():
            await model.batcher.close()
        self._thread.shutdown()

    def _load(self, name: str) -> Model:
        predictor = self._make(self._folders[name])
        model = Model(name, predictor, Batcher(predictor.scores, self._max_batch, self._observe))
        self._loaded[name] = model
        return model
