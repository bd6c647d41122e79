"""Export a network as ONNX and OpenVINO IR; `python scripts/export.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("export"))
