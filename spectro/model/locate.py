"""Where the shipped checkpoint lies."""

import os
from pathlib import Path

from spectro.errors import CheckpointError
from spectro.model.metadata import DESCRIPTION_FILE

DEFAULT_CHECKPOINT = "mobilenet-ravdess"


def default_checkpoint() -> Path:
    """Return the folder of the shipped checkpoint: SPECTRO_CHECKPOINT, or the repository's, or the working folder's.

    Raises:
        CheckpointError: none of them is there.
    """
    if named := os.environ.get("SPECTRO_CHECKPOINT"):
        return Path(named)
    roots = (Path(__file__).resolve().parents[2], Path.cwd())
    for root in roots:
        folder = root / "checkpoints" / DEFAULT_CHECKPOINT
        if (folder / DESCRIPTION_FILE).exists():
            return folder
    raise CheckpointError(
        f"the shipped checkpoint checkpoints/{DEFAULT_CHECKPOINT} is not in {' or '.join(map(str, roots))}; "
        "run from a clone of the repository, name a checkpoint, or set SPECTRO_CHECKPOINT"
    )
