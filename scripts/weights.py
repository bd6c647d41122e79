"""List and fetch starting weights; `python scripts/weights.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("weights"))
