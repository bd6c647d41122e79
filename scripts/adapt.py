"""Adapt a checkpoint to your recordings, without labels; `python scripts/adapt.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("adapt"))
