"""What computes the network: PyTorch, ONNX Runtime, or OpenVINO.

PyTorch computes any checkpoint. The other two are several times as fast on a processor and start several times as fast,
without PyTorch; they compute an exported copy, which is made when it is first asked for and kept.

An engine is tried on a picture before it is handed out, and every answer is looked at: numbers that are not finite are
the checkpoint's fault, and never a label.
"""

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from spectro.errors import CheckpointError, ExportError, PredictionError
from spectro.files import printable
from spectro.learn import description as descriptions
from spectro.learn.description import EXPORT_FILE, Description
from spectro.predict.forks import FORKS
from spectro.predict.rows import Scores
from spectro.signal.spectrogram import Image

if TYPE_CHECKING:
    from spectro.learn.checkpoint import Checkpoint

EngineName: TypeAlias = Literal["auto", "torch", "onnx", "openvino"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
Pictures: TypeAlias = npt.NDArray[np.uint8]
Scoring: TypeAlias = Callable[[Pictures], Scores]

PACKAGE = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The package of each engine but PyTorch, the fastest in float32 first (benchmarks/README.md)."""
EXPORTER = ("onnx", "onnxscript")
IR_FILE = "model.xml"
VARIABLE = "SPECTRO_ENGINE"
CLOSE_CALL = 0.2
"""Two labels nearer than this in bfloat16 are told apart in float32: hardly ever are they interchanged from further."""


class Engine(Protocol):
    """Computes the network of one checkpoint; may be asked by several threads, and in forked processes."""

    name: str
    """What computes, and in which precision: `openvino 2026.0, float32`."""
    lock: Any
    """An RLock: who has it has the network to himself."""

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width).

        Raises:
            CheckpointError: the network's answer is not finite.
        """


class TorchEngine:
    """PyTorch.

    Args:
        checkpoint: the network, which is moved to the device.
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        precision: `bfloat16` lets convolutions and dense layers compute in it, but for close calls.
        source: what errors call the checkpoint; None for its backbone.

    Raises:
        PredictionError: there is no such device.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        device: str | None = None,
        precision: Precision = "float32",
        source: str | None = None,
    ) -> None:
        import torch

        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.net = checkpoint.net.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise PredictionError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        self.name = f"torch {torch.__version__} on {self.device}, {precision}"
        self.lock = threading.RLock()
        self.native: Sequence[Any] = []
        self._checkpoint, self._bfloat16 = checkpoint, precision == "bfloat16"
        self._source = source or checkpoint.backbone
        FORKS.add("torch", self)

    def tensor(self, pictures: Pictures) -> Any:
        """Return pictures as a tensor of the same shape, on the network's device."""
        import torch

        return torch.from_numpy(pictures).to(self.device)

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width)."""
        with self.lock:  # explanations hang hooks into it meanwhile
            rough = partial(self._scores, bfloat16=True) if self._bfloat16 else None
            return finite(settle(pictures, self._scores, rough), self._source)

    def _scores(self, pictures: Pictures, bfloat16: bool = False) -> Scores:
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            features = self.net.penultimate(self.tensor(pictures))
            logits = self.net.head[-1](features).float().cpu().numpy()
        return Scores(self._checkpoint.probabilities(logits), features.float().cpu().numpy())


class OnnxEngine:
    """ONNX Runtime, on the processor.

    Args:
        folder: the folder of an exported network.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        self._session = onnxruntime.InferenceSession(folder / EXPORT_FILE, options, ["CPUExecutionProvider"])
        self.name = f"onnxruntime {onnxruntime.__version__}, float32"
        self.native: Sequence[Any] = [self._session]
        self.lock, self._source = threading.RLock(), printable(folder)
        FORKS.add("onnx", self)

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width)."""
        probabilities, embeddings = self._session.run(None, {"pictures": pictures})
        return finite(Scores(probabilities.astype(np.float64), embeddings), self._source)


class OpenVinoEngine:
    """OpenVINO, on the processor.

    Args:
        folder: the folder of an exported network.
        precision: `bfloat16` for more speed where the processor computes with it, and less exact probabilities, but
            for close calls.
    """

    def __init__(self, folder: Path, precision: Precision = "float32") -> None:
        import openvino

        path = folder / IR_FILE if (folder / IR_FILE).exists() else folder / EXPORT_FILE
        compiled = partial(openvino.Core().compile_model, path, "CPU")
        settings = {"INFERENCE_NUM_THREADS": threads(), "PERFORMANCE_HINT": "LATENCY"}
        kinds = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}
        wanted = ["float32"] if precision == "float32" else ["float32", precision]
        # OpenVINO (2026.4) gives the thread that compiles another stack for signals, and puts the one before back when
        # the network goes. Where networks go in another order, that one has gone too, and the next signal is a crash.
        with ThreadPoolExecutor(1, "compiling") as apart:
            networks = [
                apart.submit(compiled, settings | {"INFERENCE_PRECISION_HINT": kinds[kind]}).result() for kind in wanted
            ]
        self._requests = [network.create_infer_request() for network in networks]
        self.native: Sequence[Any] = self._requests
        self.lock, self._source = threading.RLock(), printable(folder)
        used = networks[-1].get_property("INFERENCE_PRECISION_HINT")
        names = {kind: name for name, kind in kinds.items()}
        self.name = f"openvino {openvino.__version__.split('-')[0]}, {names.get(used, used)}"
        FORKS.add("openvino", self)

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width)."""
        exact, *rough = (partial(self._scores, request) for request in self._requests)
        with self.lock:
            return finite(settle(pictures, exact, *rough), self._source)

    def _scores(self, request: Any, pictures: Pictures) -> Scores:
        found = request.infer({"pictures": pictures})
        return Scores(found["probabilities"].astype(np.float64), found["embeddings"].copy())


def make(
    checkpoint: "Checkpoint | str | os.PathLike[str]",
    engine: EngineName = "auto",
    *,
    device: str | None = None,
    precision: Precision = "float32",
) -> tuple[Description, Engine]:
    """Read a checkpoint, and make an engine that computes its network.

    Args:
        checkpoint: a checkpoint, its folder, or the folder of an exported network.
        engine: `torch`, `onnx`, `openvino`, or `auto`, which takes the fastest that is installed: PyTorch where there
            is a GPU, or a device is named, or the network cannot be exported; the environment's SPECTRO_ENGINE says
            what else `auto` means.
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        precision: what is computed in.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be used.
        PredictionError: the engine is not installed, or cannot do what is asked.
    """
    wanted = os.environ.get(VARIABLE) or "auto" if engine == "auto" else engine
    if wanted not in ("auto", "torch", *PACKAGE):
        raise PredictionError(f"there is no engine {wanted!r}; there are auto, torch, {', '.join(PACKAGE)}")
    if isinstance(checkpoint, Description):
        if engine not in ("auto", "torch"):
            raise PredictionError(f"engine {wanted} computes checkpoints that lie in a folder")
        return checkpoint, tried(TorchEngine(checkpoint, device, precision), checkpoint, checkpoint.backbone)
    folder = Path(checkpoint)
    about = Description.from_dict(descriptions.read(folder), folder)
    if wanted == "auto":
        wanted = _fastest(folder, device, precision)
    if wanted == "torch":
        return _torch(folder, device, precision)
    _check_possible(wanted, device, precision)
    exported = _exported(folder)
    try:
        made = OnnxEngine(exported) if wanted == "onnx" else OpenVinoEngine(exported, precision)
    except Exception as error:
        raise CheckpointError(
            f"{printable(exported)}: cannot be computed by {wanted} ({_first_line(error)}); export it again"
        ) from error
    return about, tried(made, about, printable(exported))


def tried(engine: Engine, about: Description, source: str) -> Engine:
    """Return an engine that has scored a picture as its description says.

    Args:
        engine: what is tried.
        about: what its checkpoint says of itself.
        source: what errors call the checkpoint.

    Raises:
        CheckpointError: the network cannot read such a picture, or answers something else, or nothing finite.
    """
    ramp = np.arange(np.prod(about.spec.shape), dtype=np.uint32) % 256
    try:
        found = engine.scores(batch([ramp.astype(np.uint8).reshape(about.spec.shape)]))
        shapes = found.probabilities.shape, found.embeddings.ndim
    except CheckpointError:
        raise
    except Exception as error:  # the runtimes raise errors of many kinds
        raise CheckpointError(
            f"{source}: its network does not read pictures of its own spec ({_first_line(error)}); take another "
            "checkpoint, or train it again"
        ) from error
    if shapes != ((1, len(about.labels)), 2):
        raise CheckpointError(
            f"{source}: its network answers with probabilities of shape {shapes[0]} for a picture and "
            f"{len(about.labels)} labels; take another checkpoint, or train it again"
        )
    return engine


def finite(found: Scores, source: str) -> Scores:
    """Return scores all of which are finite.

    Args:
        found: what a network answers.
        source: what errors call its checkpoint.

    Raises:
        CheckpointError: a probability, or a number of an embedding, is not finite.
    """
    if not (np.isfinite(found.probabilities).all() and np.isfinite(found.embeddings).all()):
        raise CheckpointError(
            f"{source}: its network answers with numbers that are not finite (NaN or infinite), as damaged weights do; "
            "take another checkpoint, or train it again"
        )
    return found


def settle(pictures: Pictures, exact: Scoring, rough: Scoring | None = None) -> Scores:
    """Score pictures roughly, and those exactly whose two most likely labels are less than `CLOSE_CALL` apart.

    Args:
        pictures: uint8 of shape (pictures, 1 or 3, height, width).
        exact: scores pictures.
        rough: scores them faster; None scores all of them exactly.
    """
    if rough is None:
        return exact(pictures)
    found = rough(pictures)
    if found.probabilities.shape[1] < 2:
        return found
    ordered = np.sort(found.probabilities, axis=1)
    clear = (ordered[:, -1] - ordered[:, -2] >= CLOSE_CALL) & np.isfinite(found.embeddings).all(axis=1)
    close = np.flatnonzero(~clear)  # NaN is no answer either
    if len(close):
        again = exact(pictures[close])
        found.probabilities[close], found.embeddings[close] = again.probabilities, again.embeddings
    return found


def batch(pictures: Sequence[Image]) -> Pictures:
    """Return pictures as a batch: uint8 of shape (pictures, 1 or 3, height, width)."""
    stacked = np.stack([p[..., None] if p.ndim == 2 else p for p in pictures]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked)


def installed(engine: str) -> bool:
    """Tell whether the packages of an engine are there."""
    return engine == "torch" or importlib.util.find_spec(PACKAGE[engine]) is not None


def threads() -> int:
    """Return how many threads a network may use: OMP_NUM_THREADS, or as many as there are cores for this process."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(told) if told.isdigit() and int(told) > 0 else cores


def _torch(folder: Path, device: str | None, precision: Precision) -> tuple[Description, Engine]:
    from spectro.learn import checkpoint as checkpoints

    loaded, source = checkpoints.load(folder), printable(folder)
    return loaded, tried(TorchEngine(loaded, device, precision, source), loaded, source)


def _check_possible(wanted: str, device: str | None, precision: Precision) -> None:
    """Raise PredictionError if an engine other than PyTorch cannot do here what is asked."""
    if not installed(wanted):
        raise PredictionError(f"engine {wanted} needs {PACKAGE[wanted]}: install spectro[{wanted}], or take another")
    if wanted in FORKS.inherited:
        raise PredictionError(
            f"engine {wanted} computed before this process was forked, and cannot be started anew in it: predict with "
            "the predictor that was loaded before, take engine torch, or start processes by spawn or forkserver"
        )
    if device not in (None, "cpu"):
        raise PredictionError(f"engine {wanted} computes on the processor, not on {device!r}; take --engine torch")
    if wanted == "onnx" and precision != "float32":
        raise PredictionError(f"engine onnx computes in float32, not in {precision}; take openvino or torch")


def _exported(folder: Path) -> Path:
    """Return the folder of a checkpoint's export: itself, or one in the cache."""
    if descriptions.is_export(folder):
        return folder
    from spectro.predict.cache import kept

    return kept(folder)


def _fastest(folder: Path, device: str | None, precision: Precision) -> str:
    """Return the fastest engine that can compute a checkpoint here."""
    able = [name for name in PACKAGE if installed(name) and name not in FORKS.inherited]
    possible = [name for name in able if name == "openvino" or precision == "float32"]
    if descriptions.is_export(folder):
        return possible[0] if possible else "openvino"  # which says what is to be installed
    if not possible or device not in (None, "cpu") or (device is None and _has_gpu()):
        return "torch"
    try:
        _exported(folder)
    except ExportError as error:
        print(f"{error}; PyTorch computes it meanwhile, and --engine torch does not try", file=sys.stderr)
        return "torch"
    return possible[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _has_gpu() -> bool:
    """Tell whether there is a driver of NVIDIA's, without importing PyTorch, which takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
