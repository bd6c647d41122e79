"""AudioSet's tags of pictures, by the starting weights themselves: what a fine-tuned network should not forget.

Weights that were trained on AudioSet tell speech from all other sound. Fine-tuning on speech alone loses that. So the
starting network, with its own output layer, tags each untouched training clip and each sound without speech once. The
network in training has the same output layer beside its own, and a second loss keeps its tags near those. Its tag
`Speech` is then the speech detector.

A picture is tagged in windows of 96 columns, on which YAMNet was trained, from the first to the last column with sound.
The tags of a clip are the highest of its windows: what is heard anywhere in it.

Source: Li and Hoiem, Learning without forgetting, ECCV 2016, for the second loss.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from spectro.errors import TrainingError
from spectro.files import fingerprint
from spectro.model import convert
from spectro.model.backbones import SpectrogramNet, load_weights, network_of
from spectro.model.pretrained import PRETRAINED
from spectro.picture import png
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.train.kept import keep, kept

COLUMNS = 96
SPEECH = 0
"""Place of the tag `Speech` in AudioSet's list of classes, and in YAMNet's."""
FILE, TAGS = "tags.safetensors", "tags"


def check_tags(weights: str, hidden: int, sounds: bool) -> None:
    """Check that starting weights have tags to remember.

    Args:
        weights: the starting weights.
        hidden: width of a dense layer between backbone and output; 0 for none.
        sounds: whether there are sounds without speech.

    Raises:
        TrainingError: they have none, or the network has another layer before its output, or there are no sounds.
    """
    if not sounds:
        raise TrainingError("remember needs sounds without speech beside the clips: name renderings with sounds")
    if weights not in PRETRAINED or not PRETRAINED[weights].tags:
        known = ", ".join(name for name, one in PRETRAINED.items() if one.tags)
        raise TrainingError(f"{weights} have no tags of AudioSet to remember: start from {known}, or set remember to 0")
    if hidden:
        raise TrainingError("tags are remembered by the features of the backbone: set hidden, or remember, to 0")


def tags(weights: str, rows: pd.DataFrame, spec: SpectrogramSpec, folder: Path) -> npt.NDArray[np.float32]:
    """Return the tags of pictures, from the run's folder if it has them.

    Args:
        weights: the starting weights.
        rows: rows of image indexes with the columns `clip_id` and `image` (complete paths).
        spec: their spec.
        folder: folder that the tags are kept in.

    Returns:
        probabilities, float32 of shape (rows, classes of AudioSet).

    Raises:
        WeightsError: the weights hold no output layer.
        ImageError: a picture is damaged.
    """
    key = fingerprint([weights, PRETRAINED[weights].sha256, spec.fingerprint, rows["clip_id"].tolist()])
    found = kept(folder / FILE, TAGS, key)
    if found is None:
        found = _tags(weights, rows, spec)
        keep(folder / FILE, TAGS, key, found)
    return found


def output_of(weights: str) -> nn.Linear:
    """Return the output layer of starting weights, to be trained on."""
    weight, bias = convert.output_layer(weights)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


@torch.inference_mode()
def _tags(weights: str, rows: pd.DataFrame, spec: SpectrogramSpec) -> npt.NDArray[np.float32]:
    net = SpectrogramNet(network_of(PRETRAINED[weights].network, weights), 1)
    load_weights(net, weights, spec)
    net.eval().to(memory_format=torch.channels_last)
    output, found = output_of(weights), []
    for path in tqdm(rows["image"], desc="tags", unit="clip"):
        windows: Any = torch.from_numpy(_windows(png.read(Path(path), spec).pixels))
        found.append(torch.sigmoid(output(net.embed(windows))).amax(0))
    return torch.stack(found).numpy()


def _windows(pixels: Image) -> Image:
    """Return the windows of a picture, uint8 of shape (windows, 1, height, columns); a short clip is repeated."""
    sounding = np.flatnonzero(pixels.any(axis=0))
    own = pixels[:, sounding[0] : sounding[-1] + 1] if len(sounding) else pixels
    own = np.tile(own, -(-COLUMNS // own.shape[1])) if own.shape[1] < COLUMNS else own
    last = own.shape[1] - COLUMNS
    windows: Image = np.stack([own[None, :, start : start + COLUMNS] for start in {*range(0, last, COLUMNS), last}])
    return windows
