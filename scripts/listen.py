"""Classify sound live from a microphone or standard input; `python scripts/listen.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("listen"))
