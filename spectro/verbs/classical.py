"""The classical verb: train a scikit-learn classifier on features."""

from spectro.baselines.classical import ClassicalSettings, classical
from spectro.baselines.features import show_failures
from spectro.baselines.results import show


def run(settings: ClassicalSettings) -> int:
    """Run the verb; returns its exit code."""
    found = classical(settings)
    print(f"{settings.protocol}, fold {settings.fold}; chosen by inner folds: {found.training.chosen}")
    show(found, settings.folder)
    return show_failures(list(found.training.left_out))
