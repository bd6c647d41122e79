"""Run a grid of fine-tuning runs, one row of figures per run; `python scripts/study.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("study"))
