"""The checkpoints that a service answers with: each is loaded when it is first asked for, and has its own batches."""

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
        name: what requests call it: its folder's name.
        predictor: draws and scores.
        batcher: scores in batches.
    """

    name: str
    predictor: Predictor
    batcher: Batcher


class Models:
    """Checkpoints by name; the first is the default.

    Args:
        folders: checkpoint folders, each with a name of its own.
        load: makes a predictor of a folder.
        max_batch: pictures that a network takes at a time.
        observe: is told the size of each batch.

    Raises:
        CheckpointError: two folders have one name, or the default cannot be loaded.
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
            KeyError: there is no such name.
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
