"""The finetune verb: fine-tune a network and print its figures."""

from spectro.evaluate.report import show_figures
from spectro.files import printable
from spectro.train.finetune import finetune
from spectro.train.settings import FinetuneSettings


def run(settings: FinetuneSettings) -> int:
    """Run the verb; returns its exit code."""
    about = finetune(settings).about
    if about.split is None or about.training is None:
        return 0  # one of several processes; the first one prints
    split, figures, epoch = about.split, about.metrics, about.training.epoch
    tested = split.speakers["test"]
    held = f"protocol {split.protocol}, fold {split.fold}" if tested else "trained on all speakers"
    print(f"{held}, epoch {epoch} {'chosen' if settings.chooses else 'the last'}")
    show_figures(split, figures)
    if not tested:
        print("this checkpoint cannot be measured on these speakers, because it was trained on all of them")
    print(f"checkpoint in {printable(settings.folder)}")
    return 0
