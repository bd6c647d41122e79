"""A description of a predictor, from which other processes and machines can build it."""

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from spectro.files import cache_folder, fingerprint, write_bytes
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import DESCRIPTION_FILE, EXPORT_FILE, WEIGHTS_FILE, Description
from spectro.predict.predictor import Predictor

OPTIONS = ("device", "engine", "precision", "max_duration_s", "min_margin", "min_speech")
"""Options of a `Predictor`, as verbs name them."""

_MADE: list[Any] = ["", None]
"""Token of a `Network`, and its predictor, the last of this process; a new `Network` reads its checkpoint again."""


class Network:
    """A description from which any process can build a predictor.

    Args:
        checkpoint: a checkpoint's folder; or its files, by name, for a machine that does not have the folder.
        options: options of the `Predictor`.
    """

    def __init__(self, checkpoint: Path | Mapping[str, bytes], **options: Any) -> None:
        self._checkpoint, self._options = checkpoint, options
        self._token = secrets.token_hex(8)  # shared with its copies in other processes

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Return the network for a verb's settings: their `checkpoint`, and those of `OPTIONS` that they have."""
        options = {name: getattr(settings, name) for name in OPTIONS if hasattr(settings, name)}
        return cls(settings.checkpoint or default_checkpoint(), **options)

    def shipped(self) -> "Network":
        """Return the same network for other machines: with the checkpoint's files, and on the CPU if none is named."""
        options = self._options | {"device": self._options.get("device") or "cpu"}
        if not isinstance(self._checkpoint, Path):
            return Network(self._checkpoint, **options)
        found = [self._checkpoint / name for name in (DESCRIPTION_FILE, WEIGHTS_FILE, EXPORT_FILE)]
        return Network({one.name: one.read_bytes() for one in found if one.exists()}, **options)

    def labels(self) -> tuple[str, ...]:
        """Return the checkpoint's labels, without loading its network."""
        folder = self._folder()
        return Description.read(folder).labels

    def predictor(self) -> Predictor:
        """Return this network's predictor in this process, built on first use."""
        if _MADE[0] != self._token:
            _MADE[:] = self._token, Predictor(self._folder(), **self._options)
        made: Predictor = _MADE[1]
        return made

    def _folder(self) -> Path:
        if isinstance(self._checkpoint, Path):
            return self._checkpoint
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self._checkpoint.items()}
        folder = cache_folder() / f"shipped-{fingerprint(digests)}"
        for name, content in self._checkpoint.items():
            path = folder / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digests[name]:
                write_bytes(folder / name, content)
        return folder
