"""Compute features of clips; `python scripts/features.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("features"))
