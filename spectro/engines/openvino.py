"""OpenVINO: computes an exported network, also in bfloat16 if the CPU supports it."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spectro.engines.base import ExportEngine, Pictures, Precision, Scores, finite, settle
from spectro.model.metadata import EXPORT_FILE
from spectro.processes import threads

IR_FILE = "model.xml"


class OpenVinoEngine(ExportEngine):
    """OpenVINO, on the CPU; arguments are those of `ExportEngine`.

    It is faster in bfloat16 if the CPU supports it; probabilities are then less exact, except for close calls.
    """

    key, package, precisions = "openvino", "openvino", ("float32", "bfloat16")
    files = (IR_FILE, "model.bin")

    def __init__(self, folder: Path, precision: Precision = "float32") -> None:
        import openvino

        path = folder / IR_FILE if (folder / IR_FILE).exists() else folder / EXPORT_FILE
        compiled = partial(openvino.Core().compile_model, path, "CPU")
        settings = {"INFERENCE_NUM_THREADS": threads(), "PERFORMANCE_HINT": "LATENCY"}
        kinds = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}
        wanted = ["float32"] if precision == "float32" else ["float32", precision]
        # OpenVINO (2026.4) gives the compiling thread another signal stack, and restores the earlier one when the
        # network is destroyed. If networks are destroyed in another order, that stack is gone, too, and the next signal
        # is a crash.
        with ThreadPoolExecutor(1, "compiling") as apart:
            networks = [
                apart.submit(compiled, settings | {"INFERENCE_PRECISION_HINT": kinds[kind]}).result() for kind in wanted
            ]
        self._requests = [network.create_infer_request() for network in networks]
        used = networks[-1].get_property("INFERENCE_PRECISION_HINT")
        names = {kind: name for name, kind in kinds.items()}
        self.name = f"openvino {openvino.__version__.split('-')[0]}, {names.get(used, used)}"
        super().__init__(folder, precision, self._requests)

    @classmethod
    def convert(cls, folder: Path) -> None:
        """Write OpenVINO IR."""
        import openvino

        openvino.save_model(openvino.convert_model(folder / EXPORT_FILE), folder / IR_FILE, compress_to_fp16=False)

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width)."""
        exact, *rough = (partial(self._scores, request) for request in self._requests)
        with self.lock:
            return finite(settle(pictures, exact, *rough), self._source)

    def exact(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures in float32, uint8 of shape (pictures, 1 or 3, height, width)."""
        with self.lock:
            return finite(self._scores(self._requests[0], pictures), self._source)

    def _scores(self, request: Any, pictures: Pictures) -> Scores:
        found = request.infer({"pictures": pictures})
        return Scores(found["probabilities"].astype(np.float64), found["embeddings"].copy())
