"""The finetune verb: a network fine-tuned, and its figures told."""

from spectro.evaluate.report import show_figures
from spectro.files import printable
from spectro.train.finetune import finetune
from spectro.train.settings import FinetuneSettings


def run(settings: FinetuneSettings) -> int:
    """Run the verb; returns its exit code."""
    about = finetune(settings).about
    if about.split is None or about.training is None:
        return 0  # one of several processes; the first one reports
    split, figures, epoch = about.split, about.metrics, about.training.epoch
    tested = split.speakers["test"]
    held = f"protocol {split.protocol}, fold {split.fold}" if tested else "all speakers trained on"
    print(f"{held}, epoch {epoch} {'chosen' if settings.chooses else 'the last'}")
    show_figures(split, figures)
    if not tested:
        print("no clip of these speakers can measure this checkpoint, because it was trained on all of them")
    print(f"checkpoint in {printable(settings.folder)}")
    return 0
