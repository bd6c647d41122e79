"""Serve predictions over HTTP, with a web page; `python scripts/serve.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("serve"))
