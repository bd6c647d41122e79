"""The finetune verb: a network fine-tuned, and its figures told."""

from spectro.files import printable
from spectro.train.finetune import finetune
from spectro.train.settings import FinetuneSettings


def run(settings: FinetuneSettings) -> int:
    """Run the verb; returns its exit code."""
    checkpoint = finetune(settings)
    if "metrics" not in checkpoint.origin:
        return 0  # one of several processes; the first one reports
    split, figures = checkpoint.origin["split"], checkpoint.origin["metrics"]
    epoch = checkpoint.origin["training"]["epoch"]
    held = f"protocol {split['protocol']}, fold {split['fold']}" if split["speakers"]["test"] else "nobody held out"
    print(f"{held}, epoch {epoch} {'chosen' if settings.chooses else 'the last'}")
    for part, values in figures.items():
        speakers = ", ".join(split["speakers"][part])
        print(
            f"{part:>5} speakers {speakers}: UAR {values['uar']:.3f}, WA {values['wa']:.3f}, F1 {values['f1']:.3f} "
            f"({values['clips']} clips)"
        )
    if not split["speakers"]["test"]:
        print("all speakers were trained on: no clip of theirs can measure this checkpoint")
    if split["leak"]:
        print(f"these figures leak: {split['leak']}")
    print(f"checkpoint in {printable(settings.folder)}")
    return 0
