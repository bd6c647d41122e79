"""The output layer of a checkpoint as the start of another network's, label by label."""

from collections.abc import Sequence
from pathlib import Path

import torch

from spectro.errors import TrainingError
from spectro.files import printable, quoted
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet, checkpoint_of


def keep_head(net: SpectrogramNet, labels: Sequence[str], weights: str) -> None:
    """Start the head from a checkpoint's. The output of a label that the checkpoint does not have keeps its weights.

    Args:
        net: the network.
        labels: its labels, in the order of its outputs.
        weights: the folder of the checkpoint, or its weights file.

    Raises:
        TrainingError: the weights are no checkpoint, or one with other layers in its head, or with none of the labels.
        CheckpointError: the checkpoint is damaged.
    """
    folder = checkpoint_of(Path(weights))
    if folder is None:
        raise TrainingError(
            f"{printable(weights)}: no checkpoint, so it has no head to keep: name a checkpoint folder as weights"
        )
    given = checkpoints.load(folder)
    shared = [label for label in labels if label in given.about.labels]
    if not shared:
        raise TrainingError(
            f"{printable(folder)}: its labels are {quoted(given.about.labels)}, none of "
            f"{quoted(labels)}: set keep_head to false"
        )
    if given.about.hidden != net.hidden:
        raise TrainingError(
            f"{printable(folder)}: its head has {given.about.hidden} hidden units, and this one {net.hidden}: set "
            f"hidden to {given.about.hidden}, or keep_head to false"
        )
    rows = [labels.index(label) for label in shared]
    known = [given.about.labels.index(label) for label in shared]
    head, last = given.net.head.state_dict(), f"{len(net.head) - 1}."
    with torch.no_grad():
        for name, own in net.head.state_dict().items():
            if name.startswith(last):
                own[rows] = head[name][known]
            else:
                own.copy_(head[name])
