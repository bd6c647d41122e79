"""Fine-tune a speech network such as wav2vec 2.0; `python scripts/speech.py --help`."""

import sys

from spectro.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("speech"))
