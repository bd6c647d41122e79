"""Evaluate a checkpoint on speakers that it was not trained on; `python scripts/evaluate.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("evaluate"))
