"""Switches off the telemetry of libraries, so that nothing about recordings or their owners leaves the machine.

This happens in every process when `spectro` is imported, before any of these libraries is. A variable that the user
has set takes precedence.
"""

import os
import sys

REPORTS = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: sends events with paths to Microsoft, keeps an ID in the user's cache
    "HF_HUB_DISABLE_TELEMETRY": "1",  # transformers, timm and other hub clients: requests say what is loaded
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray: sends a cluster's versions, sizes and libraries to its makers
    "NO_ALBUMENTATIONS_UPDATE": "1",  # Albumentations: checks for a newer version at every start
    "DO_NOT_TRACK": "1",  # the common convention, https://consoledonottrack.com
}
"""Environment variables that make libraries report nothing."""

OPENVINO_REPORTER = "openvino_telemetry"
"""OpenVINO's package that writes an ID into the home folder and contacts Google Analytics at every import.

It has no environment variable: opting out needs a file in the home folder. OpenVINO works without the package.
"""


def report_nothing() -> None:
    """Switch off the telemetry of libraries in this process and its child processes."""
    for name, value in REPORTS.items():
        os.environ.setdefault(name, value)
    if "openvino" not in sys.modules:
        sys.modules.setdefault(OPENVINO_REPORTER, None)  # type: ignore[arg-type] # as if it were not installed
    if "onnxruntime" in sys.modules:  # it has already read the variable
        sys.modules["onnxruntime"].disable_telemetry_events()
