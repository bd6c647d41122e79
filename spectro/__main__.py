"""`python -m spectro VERB ...`, the same as `spectro VERB ...`."""

import sys

from spectro.cli import main

if __name__ == "__main__":
    sys.exit(main())
