"""Networks that read a picture as a sequence of frames: the 1-D CNN, LSTM and GRU common in projects on RAVDESS.

A column of a picture is a log-mel frame, and its cosine transform gives the frame's MFCC, so these networks read the
same pictures as ImageNet networks. They are registered with timm under the names in `NAMES`, and trained, resumed,
evaluated and served like any other backbone. None has published weights.
"""

import math
from typing import Any, Literal

import torch
from timm.models import register_model
from torch import nn

from spectro.errors import WeightsError

NAMES = ("cnn1d", "cnn1d_logmel", "lstm", "lstm_logmel", "gru", "gru_logmel")

CELLS: dict[str, type[nn.LSTM | nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
COEFFICIENTS, BANDS = 40, 64
POOLED_FRAMES = 4
_CONFIG = {
    "input_size": (3, 128, 224),
    "fixed_input_size": False,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "classifier": "head",
}


class Frames(nn.Module):
    """Converts a picture to frames, each feature normalised by its mean and deviation over the training clips.

    Two columns make a frame (25 ms by default), about the distance between frames in those projects.

    Args:
        kind: `mfcc`: the first 40 coefficients of the orthonormal cosine transform of each column, which are MFCC up
            to the scale of the picture's gray values; `logmel`: means of neighbouring mel bands, 64 in all.
    """

    def __init__(self, kind: Literal["mfcc", "logmel"]) -> None:
        super().__init__()
        self.kind = kind
        self.features = COEFFICIENTS if kind == "mfcc" else BANDS
        self.norm = nn.BatchNorm1d(self.features)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return frames, float (batch, features, width // 2), from the first channel of (batch, 3, height, width)."""
        bands = nn.functional.avg_pool1d(pictures[:, 0].flip(1), 2)  # row 0 shows the highest band
        if self.kind == "mfcc":
            frames = cosine_transform(bands.shape[1], COEFFICIENTS).to(bands) @ bands
        else:
            frames = nn.functional.adaptive_avg_pool1d(bands.transpose(1, 2), BANDS).transpose(1, 2)
        normalised: torch.Tensor = self.norm(frames)
        return normalised


def cosine_transform(bands: int, coefficients: int) -> torch.Tensor:
    """Return the orthonormal DCT-II, float32 of shape (coefficients, bands); rows beyond the bands are zero."""
    order, band = torch.arange(coefficients)[:, None], torch.arange(bands)
    basis = torch.cos(math.pi / bands * (band + 0.5) * order) * math.sqrt(2 / bands)
    basis[0] /= math.sqrt(2)
    return basis * (order < bands)


class SequenceNet(nn.Module):
    """A body over frames, with the attributes that describe timm's networks.

    Args:
        frames: converts a picture to frames.
        body: takes frames (batch, features, frames), returns (batch, `body.features`).
    """

    def __init__(self, frames: Frames, body: "Convolutions | Recurrence") -> None:
        super().__init__()
        self.frames, self.body = frames, body
        self.num_features = self.head_hidden_size = body.features
        self.pretrained_cfg = self.default_cfg = dict(_CONFIG)
        self.feature_info = [{"module": "frames"}, {"module": "body"}]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's rule for grouping parameters by layer."""
        return {"stem": r"^frames", "blocks": [(r"^body\.(?:blocks\.)?(\d+)", None), (r"^body", (99,))]}

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, `num_features`) for normalised pictures (batch, 3, height, width)."""
        features: torch.Tensor = self.body(self.frames(pictures))
        return features


class Convolutions(nn.Module):
    """Four convolutions along time, each with batch norm, ReLU, pooling and dropout, then means over four parts."""

    CHANNELS = (64, 128, 128, 256)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        blocks = []
        for channels in self.CHANNELS:
            blocks.append(
                nn.Sequential(
                    nn.Conv1d(inputs, channels, kernel_size=5, padding=2),
                    nn.BatchNorm1d(channels),
                    nn.ReLU(),
                    nn.MaxPool1d(2, ceil_mode=True),
                    nn.Dropout(0.2),
                )
            )
            inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool1d(POOLED_FRAMES)
        self.features = inputs * POOLED_FRAMES

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, `features`) of frames (batch, inputs, frames)."""
        pooled: torch.Tensor = self.pool(self.blocks(frames))
        return pooled.flatten(1)


class Recurrence(nn.Module):
    """Two recurrent layers of 128 units; the mean of their outputs over time.

    The last state alone, which many projects use, would be that of the padding after the speech.
    """

    UNITS = 128

    def __init__(self, cell: type[nn.LSTM | nn.GRU], inputs: int) -> None:
        super().__init__()
        self.cells = cell(inputs, self.UNITS, num_layers=2, batch_first=True, dropout=0.2)
        self.features = self.UNITS

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, `features`) of frames (batch, inputs, frames)."""
        outputs, _state = self.cells(frames.transpose(1, 2))
        mean: torch.Tensor = outputs.mean(1)
        return mean


def _register(name: str) -> None:
    """Register a network with timm."""
    cell, _, kind = name.partition("_")

    def make(pretrained: bool = False, **_: Any) -> SequenceNet:
        if pretrained:
            raise WeightsError(f"there are no published weights for {name}")
        frames = Frames("logmel" if kind else "mfcc")
        body = Convolutions(frames.features) if cell == "cnn1d" else Recurrence(CELLS[cell], frames.features)
        return SequenceNet(frames, body)

    make.__name__ = name
    register_model(make)


for _name in NAMES:
    _register(_name)
