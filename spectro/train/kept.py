"""Arrays that a run computes once, kept in its folder for when it is resumed."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pytorch_lightning.utilities import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from spectro.files import write_bytes

KEY = "key"


@rank_zero_only
def keep(path: Path, name: str, key: str, values: npt.NDArray[np.float32]) -> None:
    """Write an array, complete or not at all; of a run's processes, only the first does.

    Args:
        path: file to write.
        name: name of the array in it.
        key: identity of everything that the array depends on.
        values: the array.
    """
    write_bytes(path, save({name: values}, metadata={KEY: key}))


def kept(path: Path, name: str, key: str) -> npt.NDArray[np.float32] | None:
    """Return an array that was kept; None if the file is missing or damaged, or depends on something else."""
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}).get(KEY) != key:
                return None
            found: npt.NDArray[np.float32] = file.get_tensor(name)
            return found
    except (OSError, SafetensorError):
        return None
