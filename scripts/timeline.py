"""Show how emotion changes over the course of recordings; `python scripts/timeline.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("timeline"))
