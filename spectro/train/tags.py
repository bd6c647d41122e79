"""Speech or not, as weights from AudioSet know it: what a fine-tuned network should not forget.

Such weights tell speech from all other sound. Fine-tuning on speech alone loses that. So the network in training has a
second output beside its labels, which is then the speech detector. Its target is 1 for a clip of a corpus, which is
speech. For a sound without speech it is the probability of AudioSet's tag `Speech` that the starting network gives with
its own output layer: collections of sounds hold a voice here and there, and such sounds are not taught as silence.

A picture is tagged in windows of 96 columns, on which YAMNet was trained, from the first to the last column with sound.
The tag of a sound is the highest of its windows: whether anybody speaks anywhere in it.

Source: Li and Hoiem, Learning without forgetting, ECCV 2016, for a second loss with the starting network's answers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from spectro.corpora.splits import pictures_fingerprint
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
FILE, TAGS = "tags.safetensors", "speech"


def check_tags(weights: str, hidden: int, sounds: bool) -> None:
    """Check that starting weights have tags to remember.

    Args:
        weights: the starting weights.
        hidden: width of a dense layer between backbone and output; 0 for none.
        sounds: whether there are sounds without speech.

    Raises:
        TrainingError: they have no output layer, or the network has another layer before its output, or there are no
            sounds.
    """
    if not sounds:
        raise TrainingError("remember needs sounds without speech beside the clips: name renderings with sounds")
    if weights not in PRETRAINED or not PRETRAINED[weights].tags:
        known = ", ".join(name for name, one in PRETRAINED.items() if one.tags)
        raise TrainingError(f"{weights} have no tag Speech to remember: start from {known}, or set remember to 0")
    if hidden:
        raise TrainingError("the backbone's own features remember the tag: set hidden, or remember, to 0")


def tags(weights: str, rows: pd.DataFrame, spec: SpectrogramSpec, folder: Path) -> npt.NDArray[np.float32]:
    """Return the tag of pictures, from the run's folder if it has them.

    Args:
        weights: the starting weights.
        rows: rows of image indexes with the columns `clip_id` and `image` (complete paths).
        spec: their spec.
        folder: folder that the tags are kept in.

    Returns:
        probabilities of speech, float32 of shape (rows,).

    Raises:
        WeightsError: the weights hold no output layer.
        ImageError: a picture is damaged.
    """
    key = fingerprint([weights, PRETRAINED[weights].sha256, spec.fingerprint, pictures_fingerprint(rows)])
    found = kept(folder / FILE, TAGS, key)
    if found is None:
        found = _tags(weights, rows, spec)
        keep(folder / FILE, TAGS, key, found)
    return found


def second_output(features: int) -> nn.Linear:
    """Return the output to be trained beside the labels; it begins without an opinion.

    The starting weights' own output layer would begin far off: it was trained on pictures without black columns.
    """
    layer = nn.Linear(features, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@torch.inference_mode()
def _tags(weights: str, rows: pd.DataFrame, spec: SpectrogramSpec) -> npt.NDArray[np.float32]:
    net = SpectrogramNet(network_of(PRETRAINED[weights].network, weights), 1)
    load_weights(net, weights, spec)
    net.eval().to(memory_format=torch.channels_last)
    weight, bias = (tensor[SPEECH] for tensor in convert.output_layer(weights))
    found = []
    for path in tqdm(rows["image"], desc="speech or not", unit="clip"):
        windows: Any = torch.from_numpy(_windows(png.read(Path(path), spec).pixels))
        found.append(torch.sigmoid(net.embed(windows) @ weight + bias).amax())
    return torch.stack(found).numpy()


def _windows(pixels: Image) -> Image:
    """Return the windows of a picture, uint8 of shape (windows, 1, height, columns); a short clip is repeated."""
    sounding = np.flatnonzero(pixels.any(axis=0))
    own = pixels[:, sounding[0] : sounding[-1] + 1] if len(sounding) else pixels
    own = np.tile(own, -(-COLUMNS // own.shape[1])) if own.shape[1] < COLUMNS else own
    last = own.shape[1] - COLUMNS
    windows: Image = np.stack([own[None, :, start : start + COLUMNS] for start in {*range(0, last, COLUMNS), last}])
    return windows
