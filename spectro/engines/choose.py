"""Choose the engine that computes a checkpoint.

PyTorch computes any checkpoint. The others are several times as fast on a CPU and start several times as fast, without
PyTorch; they compute an exported copy, which is made on first use and kept. An engine is tried on a picture before it
is returned.
"""

import ctypes
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spectro.engines import cache
from spectro.engines.base import Engine, EngineName, Precision, batch, first_line
from spectro.engines.forks import FORKS
from spectro.engines.pytorch import TorchEngine
from spectro.engines.registry import FOR_EXPORTS
from spectro.errors import CheckpointError, ExportError, PredictionError
from spectro.files import printable
from spectro.model import metadata as descriptions
from spectro.model.metadata import Description

if TYPE_CHECKING:
    from spectro.model.checkpoint import Checkpoint

VARIABLE = "SPECTRO_ENGINE"
LOG = logging.getLogger("spectro")


def engine_for(
    checkpoint: "Checkpoint | str | os.PathLike[str]",
    engine: EngineName = "auto",
    *,
    device: str | None = None,
    precision: Precision = "float32",
) -> tuple[Description, Engine]:
    """Read a checkpoint, and create an engine that computes its network.

    Args:
        checkpoint: a checkpoint, its folder, or the folder of an exported network.
        engine: name of the engine, or `auto` for the fastest that is installed: PyTorch if there is a GPU, a device is
            named, or the network cannot be exported. The environment variable SPECTRO_ENGINE gives `auto` another
            meaning.
        device: `cpu`, `cuda`, ...; None for a GPU if there is one.
        precision: precision to compute in.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be used.
        PredictionError: the engine is not installed, or does not support what is requested.
    """
    wanted = os.environ.get(VARIABLE) or "auto" if engine == "auto" else engine
    if wanted not in ("auto", "torch", *FOR_EXPORTS):
        raise PredictionError(f"there is no engine {wanted!r}; choose from auto, torch, {', '.join(FOR_EXPORTS)}")
    if not isinstance(checkpoint, str | os.PathLike):
        if engine not in ("auto", "torch"):
            raise PredictionError(
                f"engine {wanted} computes only checkpoints in a folder; name the folder, or use engine torch"
            )
        about = checkpoint.about
        return about, tried(TorchEngine(checkpoint, device, precision), about, about.backbone)
    folder = Path(checkpoint)
    about = Description.read(folder)
    if wanted == "auto":
        wanted = _fastest(folder, device, precision)
    if wanted == "torch":
        return _torch(folder, device, precision)
    _check_possible(wanted, device, precision)
    exported = _exported(folder)
    try:
        made = FOR_EXPORTS[wanted](exported, precision)
    except Exception as error:
        raise CheckpointError(
            f"{printable(exported)}: cannot be computed with {wanted} ({first_line(error)}); export it again"
        ) from error
    return about, tried(made, about, printable(exported))


def tried(engine: Engine, about: Description, source: str) -> Engine:
    """Return an engine after it has scored a picture as its checkpoint's description says.

    Args:
        engine: engine to try.
        about: description of its checkpoint.
        source: name of the checkpoint in errors.

    Raises:
        CheckpointError: the network cannot read such a picture, or its output has another shape or is not finite.
    """
    ramp = np.arange(np.prod(about.spec.shape), dtype=np.uint32) % 256
    try:
        found = engine.scores(batch([ramp.astype(np.uint8).reshape(about.spec.shape)]))
        shapes = found.probabilities.shape, found.embeddings.ndim
    except CheckpointError:
        raise
    except Exception as error:  # the runtimes raise many kinds of errors
        raise CheckpointError(
            f"{source}: its network cannot read pictures of its own spec ({first_line(error)}); use another "
            "checkpoint, or train it again"
        ) from error
    if shapes != ((1, len(about.labels)), 2):
        raise CheckpointError(
            f"{source}: its network outputs probabilities of shape {shapes[0]} for a picture and "
            f"{len(about.labels)} labels; use another checkpoint, or train it again"
        )
    return engine


def _torch(folder: Path, device: str | None, precision: Precision) -> tuple[Description, Engine]:
    from spectro.model import checkpoint as checkpoints

    loaded, source = checkpoints.load(folder), printable(folder)
    return loaded.about, tried(TorchEngine(loaded, device, precision, source), loaded.about, source)


def _check_possible(wanted: str, device: str | None, precision: Precision) -> None:
    """Raise PredictionError if an engine other than PyTorch does not support here what is requested."""
    engine = FOR_EXPORTS[wanted]
    if not engine.installed():
        raise PredictionError(
            f"engine {wanted} needs {engine.package}: install spectro[{wanted}], or use another engine"
        )
    if wanted in FORKS.inherited:
        raise PredictionError(
            f"engine {wanted} ran before this process was forked, and cannot be started again in it: predict with the "
            "predictor that was loaded before, use engine torch, or start processes with spawn or forkserver"
        )
    if device not in (None, "cpu"):
        raise PredictionError(f"engine {wanted} computes on the CPU, not on {device!r}; use --engine torch")
    if precision not in engine.precisions:
        engines: list[type[Engine]] = [*FOR_EXPORTS.values(), TorchEngine]
        able = [one.key for one in engines if precision in one.precisions]
        raise PredictionError(
            f"engine {wanted} computes in {' or '.join(engine.precisions)}, not in {precision}; use {' or '.join(able)}"
        )


def _exported(folder: Path) -> Path:
    """Return the folder of a checkpoint's export: the folder itself, or one in the cache."""
    if descriptions.is_export(folder):
        return folder
    return cache.kept(folder)


def _fastest(folder: Path, device: str | None, precision: Precision) -> str:
    """Return the fastest engine that can compute a checkpoint here."""
    able = [name for name, engine in FOR_EXPORTS.items() if precision in engine.precisions]
    possible = [name for name in able if FOR_EXPORTS[name].installed() and name not in FORKS.inherited]
    if descriptions.is_export(folder):
        return [*possible, *able][0]  # if none is installed, its error says what to install
    if not possible or device not in (None, "cpu") or (device is None and _has_gpu()):
        return "torch"
    try:
        _exported(folder)
    except ExportError as error:
        LOG.warning("%s; PyTorch computes it for now (--engine torch skips this attempt)", error)
        return "torch"
    return possible[0]


def _has_gpu() -> bool:
    """Return whether there is an NVIDIA driver, without importing PyTorch, which takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
