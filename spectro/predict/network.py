"""What a predictor is made of, told so that another process, or another machine, can make it, too."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from spectro.files import cache_folder, fingerprint, write_bytes
from spectro.model.metadata import DESCRIPTION_FILE, EXPORT_FILE, WEIGHTS_FILE, Description, read
from spectro.predict.predictor import Predictor


class Network:
    """What any process makes its predictor of.

    Args:
        checkpoint: a checkpoint's folder; or its files, by name, for a machine that does not have it.
        options: of the `Predictor`.
    """

    def __init__(self, checkpoint: Path | Mapping[str, bytes], **options: Any) -> None:
        self._checkpoint, self._options = checkpoint, options

    def shipped(self) -> "Network":
        """Return the same with the checkpoint's files in it."""
        if not isinstance(self._checkpoint, Path):
            return self
        found = [self._checkpoint / name for name in (DESCRIPTION_FILE, WEIGHTS_FILE, EXPORT_FILE)]
        return Network({one.name: one.read_bytes() for one in found if one.exists()}, **self._options)

    def labels(self) -> tuple[str, ...]:
        """Return the checkpoint's labels, without loading its network."""
        folder = self._folder()
        return Description.from_dict(read(folder), folder).labels

    def predictor(self) -> Predictor:
        """Return the predictor of this process, made when it is first asked for."""
        return _predictor(self._folder(), tuple(sorted(self._options.items())))

    def _folder(self) -> Path:
        if isinstance(self._checkpoint, Path):
            return self._checkpoint
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self._checkpoint.items()}
        folder = cache_folder() / f"shipped-{fingerprint(digests)}"
        for name, content in self._checkpoint.items():
            if not (folder / name).exists():
                write_bytes(folder / name, content)
        return folder


@lru_cache(1)
def _predictor(folder: Path, options: tuple[tuple[str, Any], ...]) -> Predictor:
    return Predictor(folder, **dict(options))
