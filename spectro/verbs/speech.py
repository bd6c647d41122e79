"""The speech verb: fine-tune a speech network."""

from spectro.baselines.results import show
from spectro.baselines.speech import SpeechSettings, finetune


def run(settings: SpeechSettings) -> int:
    """Run the verb; returns its exit code."""
    found = finetune(settings)
    print(f"{settings.protocol}, fold {settings.fold}, epoch {found.training.epoch} chosen")
    show(found, settings.folder)
    return 0
