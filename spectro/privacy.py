"""Nothing of a recording or of its owner is told to anybody: what libraries report on their own is switched off.

It happens when `spectro` is imported, before any of these libraries is, in every process. Whoever sets one of the
variables has the last word.
"""

import os
import sys

REPORTS = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: events with paths to Microsoft, and an identity in the user's cache
    "HF_HUB_DISABLE_TELEMETRY": "1",  # transformers, timm and all that fetch from a hub: what is loaded, in requests
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray: versions, sizes and libraries of a cluster to its makers
    "NO_ALBUMENTATIONS_UPDATE": "1",  # asks for a newer version at every start
    "DO_NOT_TRACK": "1",  # what everybody else has agreed on, https://consoledonottrack.com
}
"""What to set in the environment so that a library reports nothing."""

OPENVINO_REPORTER = "openvino_telemetry"
"""OpenVINO's package that writes an identity into the home folder, and asks for Google Analytics, at every import.

It knows no variable: its refusal is a file in the home folder. OpenVINO does without the package where it is missing.
"""


def report_nothing() -> None:
    """Switch off what libraries report, of this process and those that it starts."""
    for name, value in REPORTS.items():
        os.environ.setdefault(name, value)
    if "openvino" not in sys.modules:
        sys.modules.setdefault(OPENVINO_REPORTER, None)  # type: ignore[arg-type] # as if it were not installed
    if "onnxruntime" in sys.modules:  # it has read the variable
        sys.modules["onnxruntime"].disable_telemetry_events()
