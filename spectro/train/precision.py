"""Mixed precision on a processor: which layers are better off in float32.

oneDNN has no fast bfloat16 gradient of a depthwise convolution with a stride: those of MobileNetV2's four took a third
of a step of training where it was measured (benchmarks/README.md).
"""

import torch
from torch import nn


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 whatever its surroundings do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of a tensor (batch, channels, height, width), float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def spare_strided_depthwise(net: nn.Module) -> int:
    """Let the depthwise convolutions with a stride compute in float32; returns how many there are.

    Weights and their names stay as they are.

    Args:
        net: a network that is trained in bfloat16 on a processor.
    """
    found = [one for one in net.modules() if type(one) is nn.Conv2d and one.groups == one.in_channels > 1]
    strided = [one for one in found if max(one.stride) > 1]
    for one in strided:
        one.__class__ = Float32Conv2d
    return len(strided)
