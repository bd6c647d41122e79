"""A checkpoint's network as ONNX and OpenVINO IR, checked against PyTorch.

An export folder is a checkpoint folder with `model.onnx` (and `model.xml` and `model.bin`, if OpenVINO is installed) in
place of `model.safetensors`: it can predict and nothing else. The network takes `pictures`, uint8 of shape (any, 1 or
3, height, width), and returns `probabilities`, float32 of shape (any, labels), and `embeddings`, float32 of shape (any,
features); it includes normalisation, softmax and temperature.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import soxr

from spectro.engines.base import batch, first_line
from spectro.engines.pytorch import TorchEngine
from spectro.engines.registry import FOR_EXPORTS
from spectro.errors import CheckpointError, ExportError, PredictionError
from spectro.files import held, printable, write_json
from spectro.model import metadata as descriptions
from spectro.model.metadata import CARD_FILE, DESCRIPTION_FILE, EXPORT_FILE, Export
from spectro.outputs import lock_of
from spectro.picture import spectrogram
from spectro.picture.spec import Image, SpectrogramSpec

if TYPE_CHECKING:
    from spectro.model.checkpoint import Checkpoint


TOLERANCE = 1e-4
"""Largest accepted difference of a probability from PyTorch's, in float32."""
EXPORTER = ("onnx", "onnxscript")
FILES = {EXPORT_FILE, DESCRIPTION_FILE, CARD_FILE, *(name for one in FOR_EXPORTS.values() for name in one.files)}
BATCH = 32


def check_replaceable(out: Path) -> None:
    """Raise PredictionError if a folder holds anything but an earlier export."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if os.path.lexists(out) and not (
        out.is_dir() and names <= FILES and (not names or "export" in descriptions.content_of(out))
    ):
        raise PredictionError(f"{printable(out)}: already exists, and is not an export; choose another --out")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold an export's folder exclusively, and bring back what a killed run moved aside.

    Raises:
        PredictionError: another run is writing there, or the folder holds something other than an export.
    """
    with held(lock_of(out)) as free:
        if not free:
            raise PredictionError(f"{printable(out)}: another run writes there; wait, or name another --out")
        before = _before(out)
        if before.exists() and out.exists():
            shutil.rmtree(before)
        elif before.exists():
            before.rename(out)
        check_replaceable(out)
        yield


def _before(out: Path) -> Path:
    """Return where an earlier export is kept while a new one takes its place."""
    return out.with_name(f".{out.name}.before")


def export(
    folder: Path, out: Path, pictures: Sequence[Image], *, ir: bool = True, replace: bool = True
) -> dict[str, dict[str, Any]]:
    """Export a checkpoint's network, and compare it with PyTorch.

    Args:
        folder: a checkpoint folder.
        out: folder to write; it appears complete or not at all.
        pictures: pictures to compare on, uint8 arrays of shape `spec.shape`.
        ir: also write the other formats of installed engines (OpenVINO IR).
        replace: replace an export in `out`; otherwise it stays, even if another process wrote it meanwhile.

    Returns:
        for each installed engine: the number of `pictures`, the share of equal labels (`agreement`), and the largest
        `difference` of a probability.

    Raises:
        CheckpointError: the folder holds no checkpoint, or one whose outputs are not finite.
        PredictionError: with `replace`, `out` holds something other than an export, or another run is writing there.
        ExportError: there is no picture to compare on, the network cannot be exported, or its export computes something
            else.
    """
    from spectro.model import checkpoint as checkpoints

    if lacking := [name for name in EXPORTER if importlib.util.find_spec(name) is None]:
        raise ExportError(f"exporting needs {', '.join(lacking)}: install spectro[onnx] or spectro[openvino]")
    if not pictures:
        raise ExportError(
            "there is no picture to compare an export on: give at least one, rendered with the checkpoint's spec"
        )
    if not any(engine.installed() for engine in FOR_EXPORTS.values()):
        raise ExportError(
            "no engine is installed to compare an export with: install spectro[onnx] or spectro[openvino]"
        )
    checkpoint = checkpoints.load(folder)
    about = checkpoint.about
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        _alone(out) if replace else nullcontext(),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name,
    ):
        work = Path(name) / "export"
        work.mkdir()
        if (folder / CARD_FILE).exists():
            shutil.copyfile(folder / CARD_FILE, work / CARD_FILE)
        try:
            _write_onnx(checkpoint, work / EXPORT_FILE)
            for engine in FOR_EXPORTS.values() if ir else ():
                if engine.installed():
                    engine.convert(work)
            found = _compare(checkpoint, work, pictures)
        except (CheckpointError, ExportError):
            raise
        except Exception as error:  # the exporter and the runtimes raise many kinds of errors
            raise ExportError(f"{about.backbone} cannot be exported ({first_line(error)})") from error
        made = Export(of=descriptions.identity(folder), compared=found, sha256=sha256(work / EXPORT_FILE))
        write_json(work / DESCRIPTION_FILE, msgspec.structs.replace(about, export=made).to_dict())
        if replace and out.exists():
            out.rename(_before(out))  # after a kill here, the next run brings it back
        if replace or not out.exists():
            work.rename(out)
        if replace:
            shutil.rmtree(_before(out), ignore_errors=True)
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_onnx(checkpoint: "Checkpoint", path: Path) -> None:
    import torch

    about = checkpoint.about

    class Answer(torch.nn.Module):
        """The network from pictures to probabilities and embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.net = checkpoint.net

        def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.net.penultimate(pictures)
            return torch.softmax(self.net.head[-1](features) / about.temperature, dim=-1), features

    example = torch.zeros((2, *batch([np.zeros(about.spec.shape, np.uint8)]).shape[1:]), dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            Answer().eval(),
            (example,),
            input_names=["pictures"],
            output_names=["probabilities", "embeddings"],
            dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare(checkpoint: "Checkpoint", folder: Path, pictures: Sequence[Image]) -> dict[str, dict[str, Any]]:
    reference = TorchEngine(checkpoint, "cpu")
    found: dict[str, dict[str, Any]] = {}
    for engine in [one(folder) for one in FOR_EXPORTS.values() if one.installed()]:
        differences, same = [], 0
        for start in range(0, len(pictures), BATCH):
            some = batch(pictures[start : start + BATCH])
            ours, theirs = reference.scores(some).probabilities, engine.scores(some).probabilities
            differences.append(np.abs(ours - theirs).max())
            same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        difference = float(np.max(differences))  # NaN if one is
        if not difference <= TOLERANCE:  # NaN is not
            raise ExportError(
                f"{checkpoint.about.backbone}: probabilities differ by {difference:.1e} between torch and {engine.name}"
            )
        found[engine.name] = {
            "pictures": len(pictures),
            "agreement": same / len(pictures),
            "difference": difference,
        }
    return found


def synthetic(spec: SpectrogramSpec) -> Iterator[Image]:
    """Yield pictures of clips from the synthetic corpus."""
    from spectro.corpora.datasets import synthetic

    for take, emotion, speaker in product(range(99), synthetic.PROSODY, range(1, 9)):
        samples = synthetic.synthesise(speaker, emotion, 0, take)
        yield spectrogram.render(soxr.resample(samples, synthetic.SAMPLE_RATE, spec.sample_rate), spec)
