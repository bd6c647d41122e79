"""Where the shipped checkpoint lies."""

import os
from pathlib import Path

from spectro.errors import CheckpointError
from spectro.model.metadata import DESCRIPTION_FILE

DEFAULT_CHECKPOINT = "yamnet-voices"


def default_checkpoint() -> Path:
    """Return the folder of the shipped checkpoint: SPECTRO_CHECKPOINT, or a wheel's, a clone's, the working folder's.

    Raises:
        CheckpointError: none of them is there.
    """
    if named := os.environ.get("SPECTRO_CHECKPOINT"):
        return Path(named)
    package = Path(__file__).resolve().parents[1]  # a wheel brings it along
    roots = (package, package.parent, Path.cwd())
    for root in roots:
        folder = root / "checkpoints" / DEFAULT_CHECKPOINT
        if (folder / DESCRIPTION_FILE).exists():
            return folder
    raise CheckpointError(
        f"the shipped checkpoint checkpoints/{DEFAULT_CHECKPOINT} is not in {' or '.join(map(str, roots))}; "
        "install a wheel of spectro, or run from a clone, name a checkpoint, or set SPECTRO_CHECKPOINT"
    )
