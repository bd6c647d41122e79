"""The features verb: extract feature vectors from the clips of a rendering."""

from spectro.baselines.features import FOLDER, FeaturesSettings, extract, show_failures
from spectro.files import printable


def run(settings: FeaturesSettings) -> int:
    """Run the verb; returns its exit code."""
    found = extract(settings.index, settings.features, copies=settings.copies, workers=settings.workers)
    print(f"{len(found.names)} features of {len(found.rows)} clips and copies in {printable(settings.index / FOLDER)}")
    return show_failures(found.failures)
