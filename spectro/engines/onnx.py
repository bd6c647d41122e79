"""ONNX Runtime: computes an exported network, several times as fast as PyTorch on a CPU."""

from pathlib import Path

import numpy as np

from spectro.engines.base import ExportEngine, Pictures, Precision, Scores, finite
from spectro.model.metadata import EXPORT_FILE
from spectro.processes import threads


class OnnxEngine(ExportEngine):
    """ONNX Runtime, on the CPU; arguments are those of `ExportEngine`."""

    key, package, precisions = "onnx", "onnxruntime", ("float32",)

    def __init__(self, folder: Path, precision: Precision = "float32") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        # threads that spin while they wait take cores from the rendering threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(folder / EXPORT_FILE, options, ["CPUExecutionProvider"])
        self.name = f"onnxruntime {onnxruntime.__version__}, {precision}"
        super().__init__(folder, precision, [self._session])

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width)."""
        probabilities, embeddings = self._session.run(None, {"pictures": pictures})
        return finite(Scores(probabilities.astype(np.float64), embeddings), self._source)
