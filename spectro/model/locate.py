"""Finds the shipped checkpoint."""

import os
from pathlib import Path

from spectro.errors import CheckpointError
from spectro.model.metadata import DESCRIPTION_FILE

DEFAULT_CHECKPOINT = "yamnet-voices"


def default_checkpoint() -> Path:
    """Return the shipped checkpoint's folder: SPECTRO_CHECKPOINT, or in the wheel, the clone or the working folder.

    Raises:
        CheckpointError: none of them exists.
    """
    if named := os.environ.get("SPECTRO_CHECKPOINT"):
        return Path(named)
    package = Path(__file__).resolve().parents[1]  # a wheel includes it
    roots = (package, package.parent, Path.cwd())
    for root in roots:
        folder = root / "checkpoints" / DEFAULT_CHECKPOINT
        if (folder / DESCRIPTION_FILE).exists():
            return folder
    raise CheckpointError(
        f"the shipped checkpoint checkpoints/{DEFAULT_CHECKPOINT} is not in {' or '.join(map(str, roots))}; "
        "install a wheel of spectro, or run from a clone, name a checkpoint, or set SPECTRO_CHECKPOINT"
    )
