"""Networks whose published weights were trained on sound, as timm models: one channel, pictures of any size.

They were trained with the lowest band in the first row, where our pictures have the highest: `SpectrogramNet` flips
pictures for them. They are registered with timm under the names in `NAMES`, and trained, resumed, evaluated and served
like any other backbone. `spectro.model.pretrained` gives the sources of their weights and the specs of their input.
"""

from functools import partial
from typing import Any

from timm.models import mobilenetv1_100, register_model
from timm.models.mobilenetv3 import MobileNetV3, SqueezeExcite, decode_arch_def, round_channels
from torch import nn

from spectro.errors import WeightsError

NAMES = ("mn04", "yamnet")

WIDTH = 0.4
STEM, LAST, HEAD = 16, 960, 1280
BLOCKS = (
    # kernel, stride, squeeze and excitation, activation, then each block's (expanded, output) channels
    ((3, 1, False, "re"), ((16, 16),)),
    ((3, 2, False, "re"), ((64, 24), (72, 24))),
    ((5, 2, True, "re"), ((72, 40), (120, 40), (120, 40))),
    ((3, 2, False, "hs"), ((240, 80), (200, 80), (184, 80), (184, 80))),
    ((3, 1, True, "hs"), ((480, 112), (672, 112))),
    ((5, 2, True, "hs"), ((672, 160), (960, 160), (960, 160))),
)
"""MobileNetV3-Large at width 1 (Howard et al., ICCV 2019, table 1)."""
_CONFIG = {
    "input_size": (1, 128, 288),
    "fixed_input_size": False,
    "mean": (0.5,),
    "std": (0.25,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "first_conv": "conv_stem",
    "classifier": "classifier",
}


def _mn04(pretrained: bool = False, **options: Any) -> nn.Module:
    """EfficientAT's `mn04`: MobileNetV3-Large at width 0.4 with one input channel and a sigmoid in squeeze-excitation.

    Source: Schmid, Koutini and Widmer, Efficient large-scale audio tagging via transformer-to-CNN knowledge
    distillation, ICASSP 2023.
    """
    if pretrained:
        raise WeightsError("mn04 starts from the weights mn04_as, not from auto: give --weights mn04_as")
    scaled = partial(round_channels, multiplier=WIDTH)
    network: Any = MobileNetV3(
        decode_arch_def(_definition(scaled)),
        in_chans=1,
        num_classes=options.get("num_classes", 0),
        stem_size=scaled(STEM),
        fix_stem=True,
        num_features=scaled(HEAD),
        act_layer=nn.Hardswish,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
        se_layer=partial(SqueezeExcite, gate_layer="sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels),
    )
    network.pretrained_cfg = network.default_cfg = dict(_CONFIG)
    described: nn.Module = network
    return described


def _yamnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """Google's YAMNet: MobileNetV1 with one input channel, padded as TensorFlow does.

    Source: Howard et al., MobileNets, arXiv:1704.04861; Plakal and Ellis, YAMNet, github.com/tensorflow/models.
    """
    if pretrained:
        raise WeightsError("yamnet starts from the weights yamnet, not from auto: give --weights yamnet")
    network: Any = mobilenetv1_100(in_chans=1, num_classes=options.get("num_classes", 0), pad_type="same")
    network.pretrained_cfg = network.default_cfg = {**_CONFIG, "input_size": (1, 64, 288)}
    described: nn.Module = network
    return described


def _definition(scaled: Any) -> list[list[str]]:
    """Return timm's block strings; widths are rounded as in torchvision, those of expansions separately."""
    stages, before = [], scaled(STEM)
    for (kernel, stride, excites, activation), blocks in BLOCKS:
        stage = []
        for place, (expanded, channels) in enumerate(blocks):
            inner, after = scaled(expanded), scaled(channels)
            kind = "ds" if expanded == channels == STEM else "ir"
            parts = [kind, "r1", f"k{kernel}", f"s{1 if place else stride}", f"e{inner / before!r}", f"c{after}"]
            stage.append("_".join([*parts, *(["se0.25"] if excites else []), f"n{activation}"]))
            before = after
        stages.append(stage)
    return [*stages, [f"cn_r1_k1_s1_c{scaled(LAST)}"]]


def _register(name: str, make: Any) -> None:
    make.__name__ = name
    register_model(make)


for _name, _make in zip(NAMES, (_mn04, _yamnet), strict=True):
    _register(_name, _make)
