"""The engines that compute an export. A new one is a class here, its name in `base.EngineName`, and an extra."""

from spectro.engines.base import ExportEngine
from spectro.engines.onnx import OnnxEngine
from spectro.engines.openvino import OpenVinoEngine

FOR_EXPORTS: dict[str, type[ExportEngine]] = {engine.key: engine for engine in (OnnxEngine, OpenVinoEngine)}
"""By what `--engine` calls them, the fastest in float32 first (benchmarks/README.md)."""
