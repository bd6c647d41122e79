"""Train and evaluate a classical classifier on features; `python scripts/classical.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("classical"))
