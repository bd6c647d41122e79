"""The engines that compute exports. A new one needs a class here, its name in `base.EngineName`, and an extra."""

from spectro.engines.base import ExportEngine
from spectro.engines.onnx import OnnxEngine
from spectro.engines.openvino import OpenVinoEngine

FOR_EXPORTS: dict[str, type[ExportEngine]] = {engine.key: engine for engine in (OnnxEngine, OpenVinoEngine)}
"""By their names for `--engine`, the fastest in float32 first (benchmarks/README.md)."""
