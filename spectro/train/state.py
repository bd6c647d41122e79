"""The state that a run is resumed from: tensors and plain data, written whole or not at all, read without executing.

Folders are copied between machines, so a state may come from anyone. A state is converted to plain data before it is
saved. It is always read with PyTorch's reader of tensors and plain data alone, whatever the caller requests. Of the
path of the best epoch in it, only the file name is used, within the state's own folder.
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
"""The required entries of a state, and their types."""
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class PlainStateIO(CheckpointIO):
    """Lightning's reading and writing of states, limited to plain data."""

    def save_checkpoint(self, checkpoint: State, path: Any, storage_options: Any = None) -> None:
        """Write a state, complete or not at all.

        Raises:
            TrainingError: it cannot be written, or holds something other than plain data.
        """
        kept = plain(checkpoint)
        try:
            with replacing(Path(path)) as temporary, temporary.open("wb") as stream:
                torch.save(kept, stream)
        except (OSError, RuntimeError) as error:  # PyTorch reports a full disk in several ways
            raise TrainingError(
                f"{printable(path)}: cannot be written ({_first_line(error)}); make room there, and run it again: it "
                "resumes from the last complete epoch"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> State:
        """Return a state; see `read_state`. Only tensors and plain data are read, whatever the arguments."""
        return read_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Return a state converted to tensors and plain data.

    Raises:
        TrainingError: a value has no plain form.
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
    raise TrainingError(f"training state holds a {type(value).__name__}, which cannot be stored as plain data")


def read_state(path: Path) -> State:
    """Return the state in a file, with its paths set to the file's current folder.

    Raises:
        TrainingError: the file is missing, incomplete or not a state, or holds more than tensors and plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is compressed, which no state is")  # and may unpack to any size
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check(state)
        _bring_along(state["callbacks"], path.parent.resolve())
    except pickle.UnpicklingError as error:
        raise unusable(path, "it holds more than tensors and plain data, which is not loaded for safety") from error
    except zipfile.BadZipFile as error:
        raise unusable(path, "it is not a complete PyTorch file") from error
    except Exception as error:  # a broken pickle raises many kinds of errors
        raise unusable(path, _first_line(error)) from error
    return state  # type: ignore[no-any-return]


def unusable(path: Path, reason: str) -> TrainingError:
    """Return the error for a file that a run cannot be resumed from."""
    return TrainingError(
        f"{printable(path)}: training cannot be resumed from it ({reason}); delete {printable(path.parent)}, "
        "and start again with --overwrite true"
    )


def rows_of(state: State) -> list[dict[str, Any]]:
    """Return the rows of the learning curves in a state: one per complete epoch."""
    rows: list[dict[str, Any]] = state["callbacks"].get(Curves.__qualname__, {"rows": []})["rows"]
    return rows


def _check(state: Any) -> None:
    """Raise ValueError if the content of a file is not the state of a run."""
    if not isinstance(state, dict) or any(type(state.get(name)) is not kind for name, kind in PARTS.items()):
        raise ValueError(f"it is not the state of a run, which has {', '.join(PARTS)}")
    rows = rows_of(state)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its learning curves are not rows")


def _bring_along(callbacks: State, folder: Path) -> None:
    """Set a state's paths to its current folder, so that a run that was moved keeps its best epoch."""
    for own in callbacks.values():
        if "best_model_path" in own:
            own |= {name: own[name] and str(folder / Path(own[name]).name) for name in PATHS}
            own["best_k_models"] = {str(folder / Path(one).name): score for one, score in own["best_k_models"].items()}
            own["dirpath"] = str(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
