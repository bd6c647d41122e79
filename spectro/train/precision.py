"""Mixed precision on a CPU: which layers are faster in float32.

oneDNN has no fast bfloat16 gradient of a strided depthwise convolution: the gradients of MobileNetV2's four took a
third of a training step where it was measured (benchmarks/README.md).
"""

import torch
from torch import nn


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32, even under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of a tensor (batch, channels, height, width), float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def spare_strided_depthwise(net: nn.Module) -> int:
    """Make the strided depthwise convolutions compute in float32; return their number.

    Weights and their names stay as they are.

    Args:
        net: a network that is trained in bfloat16 on a CPU.
    """
    found = [one for one in net.modules() if type(one) is nn.Conv2d and one.groups == one.in_channels > 1]
    strided = [one for one in found if max(one.stride) > 1]
    for one in strided:
        one.__class__ = Float32Conv2d
    return len(strided)
