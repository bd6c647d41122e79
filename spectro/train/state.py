"""The state that a run is resumed from: tensors and plain data, there whole or not at all, and read without executing.

Folders travel, so a state may come from anyone. What is saved is made plain first; what is read goes through PyTorch's
reader of tensors and plain data alone, whatever else asks for; and where it says that the best epoch lies is believed
only as far as the name of a file in its own folder.
"""

import pickle
import zipfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning_fabric.plugins import CheckpointIO

from spectro.errors import TrainingError
from spectro.files import printable, replacing
from spectro.train.curves import Curves

State: TypeAlias = dict[str, Any]

PARTS: dict[str, type] = {
    "epoch": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What a state holds, and what kind each is."""
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class PlainStateIO(CheckpointIO):
    """Lightning's way to the disk, for states that are plain."""

    def save_checkpoint(self, checkpoint: State, path: Any, storage_options: Any = None) -> None:
        """Write a state, whole or not at all.

        Raises:
            TrainingError: it cannot be written, or holds something that is not plain.
        """
        kept = plain(checkpoint)
        try:
            with replacing(Path(path)) as temporary, temporary.open("wb") as stream:
                torch.save(kept, stream)
        except (OSError, RuntimeError) as error:  # PyTorch tells a full disk as it likes
            raise TrainingError(
                f"{printable(path)}: cannot be written ({_first_line(error)}); make room there, and run it again: it "
                "goes on from the last whole epoch"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> State:
        """Return a state; see `read_state`. It is read as tensors and plain data, whatever is asked for."""
        return read_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Return a state with nothing in it but tensors and plain data.

    Raises:
        TrainingError: something is neither, nor has a plain form.
    """
    if value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value] if isinstance(value, list) else tuple(plain(one) for one in value)
    raise TrainingError(f"training state holds a {type(value).__name__}, which cannot be kept as plain data")


def read_state(path: Path) -> State:
    """Return the state in a file, its paths those of the folder where it lies now.

    Raises:
        TrainingError: it is not there, not whole, no state, or holds more than tensors and plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is packed as no state is")  # and may unpack to any size
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check(state)
        _bring_along(state["callbacks"], path.parent.resolve())
    except pickle.UnpicklingError as error:
        raise unusable(path, "it holds more than tensors and plain data, which is not loaded for safety") from error
    except zipfile.BadZipFile as error:
        raise unusable(path, "it is not a whole file of PyTorch's") from error
    except Exception as error:  # a broken pickle raises errors of many kinds
        raise unusable(path, _first_line(error)) from error
    return state  # type: ignore[no-any-return]


def unusable(path: Path, reason: str) -> TrainingError:
    """Return the error that says that a run cannot go on from a file."""
    return TrainingError(
        f"{printable(path)}: training cannot be resumed from it ({reason}); delete {printable(path.parent)}, "
        "and start again with --overwrite true"
    )


def rows_of(state: State) -> list[dict[str, Any]]:
    """Return the rows of the learning curves in a state: one for each whole epoch."""
    rows: list[dict[str, Any]] = state["callbacks"].get(Curves.__qualname__, {"rows": []})["rows"]
    return rows


def _check(state: Any) -> None:
    """Raise ValueError if what was read is not the state of a run."""
    if not isinstance(state, dict) or any(type(state.get(name)) is not kind for name, kind in PARTS.items()):
        raise ValueError(f"it is not the state of a run, which has {', '.join(PARTS)}")
    rows = rows_of(state)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its learning curves are none")


def _bring_along(callbacks: State, folder: Path) -> None:
    """Make a state name the folder where it is now, so that a run that was moved keeps its best epoch."""
    for own in callbacks.values():
        if "best_model_path" in own:
            own |= {name: own[name] and str(folder / Path(own[name]).name) for name in PATHS}
            own["best_k_models"] = {str(folder / Path(one).name): score for one, score in own["best_k_models"].items()}
            own["dirpath"] = str(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
