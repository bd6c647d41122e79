"""Show which parts of a picture led to the prediction; `python scripts/explain.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("explain"))
