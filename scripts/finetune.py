"""Fine-tune a backbone on rendered pictures; `python scripts/finetune.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("finetune"))
