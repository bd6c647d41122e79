"""Whisper's encoder as a network that maps a log-mel picture of 80 bands to features.

A column of a picture is a frame of 10 ms. The states of all layers are mixed with learnt weights. The features are the
attention-weighted mean and deviation of the mixture over time. The network is registered with timm as `whisper_tiny`,
and trained, resumed, evaluated and served like any other backbone.

Sources: Radford et al., Robust speech recognition via large-scale weak supervision, ICML 2023, for the encoder; Yang et
al., SUPERB, Interspeech 2021, for the mixture of layers; Okabe et al., Attentive statistics pooling for deep speaker
embedding, Interspeech 2018, for the pooling.
"""

from typing import Any

import torch
from timm.models import register_model
from torch import nn

from spectro.errors import WeightsError

NAME = "whisper_tiny"
BANDS, STATES, HEADS, INNER, LAYERS, POSITIONS, ATTENTION = 80, 384, 6, 1536, 4, 1500, 128
MOST_COLUMNS = 2 * POSITIONS
LEAST_VARIANCE = 1e-6
_CONFIG = {
    "input_size": (1, BANDS, 300),
    "fixed_input_size": False,
    "mean": (0.5,),
    "std": (0.25,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "classifier": "head",
}


class Block(nn.Module):
    """A layer of the encoder: self-attention over frames, then a dense network per frame, both on normalised states."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.dense_norm = nn.LayerNorm(STATES), nn.LayerNorm(STATES)
        self.query, self.value, self.out = (nn.Linear(STATES, STATES) for _ in range(3))
        self.key = nn.Linear(STATES, STATES, bias=False)
        self.dense = nn.Sequential(nn.Linear(STATES, INNER), nn.GELU(), nn.Linear(INNER, STATES))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map states of shape (batch, frames, states) to states of the same shape."""
        normed = self.attention_norm(states)
        query, key, value = (
            part(normed).unflatten(2, (HEADS, STATES // HEADS)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        states = states + self.out(seen.transpose(1, 2).flatten(2))
        added: torch.Tensor = states + self.dense(self.dense_norm(states))
        return added


class Mixture(nn.Module):
    """A weighted mean of the states of several layers, with learnt weights."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(layers))

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """Return the mixture, of the same shape as the states of each layer."""
        mixed: torch.Tensor = torch.einsum("l,l...->...", torch.softmax(self.shares, dim=0), torch.stack(states))
        return mixed


class WhisperEncoder(nn.Module):
    """The encoder of Whisper's tiny networks, with the attributes that describe timm's networks.

    Pictures may be up to 30 s wide; row 0 is the lowest band, after `SpectrogramNet` has flipped them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(BANDS, STATES, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(STATES, STATES, kernel_size=3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(POSITIONS, STATES))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(STATES)
        self.mixture = Mixture(LAYERS + 1)
        self.attention = nn.Sequential(nn.Linear(STATES, ATTENTION), nn.Tanh(), nn.Linear(ATTENTION, 1))
        self.num_features = self.head_hidden_size = 2 * STATES
        self.pretrained_cfg = self.default_cfg = dict(_CONFIG)
        self.feature_info = [
            {"module": "conv2"},
            {"module": f"blocks.{LAYERS - 2}"},
            {"module": f"blocks.{LAYERS - 1}"},
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's rule for grouping parameters by layer."""
        return {"stem": r"^conv|^positions", "blocks": [(r"^blocks\.(\d+)", None), (r"^", (99,))]}

    def states(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return the states before the first layer and after each layer, the last of them normalised.

        Their shape is (batch, half of the width, rounded up, states).

        Args:
            pictures: normalised pictures of shape (batch, 1, 80, width).
        """
        convolved = nn.functional.gelu(self.conv1(pictures[:, 0]))
        convolved = nn.functional.gelu(self.conv2(convolved)).transpose(1, 2)
        found = [convolved + self.positions[: convolved.shape[1]]]
        for block in self.blocks:
            found.append(block(found[-1]))
        found[-1] = self.norm(found[-1])
        return found

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, `num_features`) for normalised pictures (batch, 1, 80, width)."""
        mixed = self.mixture(self.states(pictures))
        weights = torch.softmax(self.attention(mixed), dim=1)
        mean = (weights * mixed).sum(1)
        variance = (weights * (mixed - mean[:, None]).square()).sum(1)
        return torch.cat([mean, variance.clamp(min=LEAST_VARIANCE).sqrt()], dim=1)


def transformers_names() -> dict[str, str]:
    """Return the parameter names of transformers' Whisper by our names, for the parameters that Whisper has."""
    own = {"conv1": "conv1", "conv2": "conv2", "norm": "layer_norm"}
    for layer in range(LAYERS):
        names = {
            "attention_norm": "self_attn_layer_norm",
            "query": "self_attn.q_proj",
            "key": "self_attn.k_proj",
            "value": "self_attn.v_proj",
            "out": "self_attn.out_proj",
            "dense_norm": "final_layer_norm",
            "dense.0": "fc1",
            "dense.2": "fc2",
        }
        own |= {f"blocks.{layer}.{name}": f"layers.{layer}.{theirs}" for name, theirs in names.items()}
    found = {
        f"{name}.{kind}": f"encoder.{theirs}.{kind}"
        for name, theirs in own.items()
        for kind in ("weight", "bias")
        if (kind, name.rpartition(".")[2]) != ("bias", "key")
    }
    return found | {"positions": "encoder.embed_positions.weight"}


def whisper_tiny(pretrained: bool = False, **_options: Any) -> nn.Module:
    """Make the encoder of Whisper's tiny networks."""
    if pretrained:
        raise WeightsError(
            "whisper_tiny starts from the weights whisper_tiny_en, not from auto: give --weights whisper_tiny_en"
        )
    return WhisperEncoder()


register_model(whisper_tiny)
