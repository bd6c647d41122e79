"""The study verb: train, measure and compare many systems."""

import sys

from spectro.files import printable
from spectro.study.settings import StudySettings
from spectro.study.study import study, summary


def run(settings: StudySettings) -> int:
    """Run the verb; returns its exit code."""
    table, failed = study(settings)
    own = settings.shortened()
    if len(table):
        print(summary(table).to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"{len(table)} rows in {printable(own.table)}")
    if own.pooled.exists():
        print(f"pooled over folds in {printable(own.pooled)}")
    if own.test and own.page.exists():
        print(f"side by side in {printable(own.page)}")
    return 0 if not failed else 1 if len(table) else 2
