"""Reads 8-bit TensorFlow Lite networks with batch norms folded into convolutions, and makes them trainable.

A convolution there has integer weights, one scale per output channel, and a bias. `fill` writes them into a network in
which a batch norm follows each convolution, so that the norm only adds the bias. Such a norm has no statistics of its
own to train with; `unfold` sets them to those of pictures, with a scale and a bias that cancel them: the outputs do not
change, and the network can be trained like any other.

Source of the format: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
inference, CVPR 2018, and TensorFlow Lite's 8-bit quantisation specification.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from spectro.errors import WeightsError

CONVOLUTIONS, DENSE = ("CONV_2D", "DEPTHWISE_CONV_2D"), "FULLY_CONNECTED"


class Layer(NamedTuple):
    """A layer of a file, in PyTorch's layout.

    Args:
        weight: float32 of shape (outputs, inputs per group, height, width), or (outputs, inputs) of a dense layer.
        bias: float32 of shape (outputs,).
    """

    weight: torch.Tensor
    bias: torch.Tensor


def read(path: Path) -> list[Layer]:
    """Read the convolutions of a TensorFlow Lite file whose weights are 8-bit integers, in execution order.

    Dense layers that follow them are read, too.

    Raises:
        WeightsError: the package `tflite`, which reads the file, is not installed.
        ValueError: the file is of another kind.
    """
    try:
        import tflite
    except ImportError as error:
        raise WeightsError(f"{path}: reading it needs the package tflite: pip install 'spectro[weights]'") from error
    content = path.read_bytes()
    if not tflite.Model.ModelBufferHasIdentifier(content, 0):
        raise ValueError("it is not a TensorFlow Lite file")
    model = tflite.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    found: list[Layer] = []
    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = tflite.opcode2name(code.BuiltinCode())
        if kind in CONVOLUTIONS or (kind == DENSE and found):
            given, weight, bias = (graph.Tensors(operator.Inputs(number)) for number in range(3))
            integers, scales = _integers(model, weight, np.int8), weight.Quantization().ScaleAsNumpy()
            axes = {CONVOLUTIONS[0]: (0, 3, 1, 2), CONVOLUTIONS[1]: (3, 0, 1, 2), DENSE: (0, 1)}[kind]
            integers = integers.transpose(axes).astype(np.float32)
            values = integers * scales.reshape(-1, *[1] * (integers.ndim - 1))  # one for each output, or for all
            step = given.Quantization().ScaleAsNumpy()[0] * scales
            biases = _integers(model, bias, np.int32).astype(np.float32) * step
            found.append(Layer(torch.from_numpy(values), torch.from_numpy(biases.astype(np.float32))))
    return found


def _integers(model: Any, tensor: Any, kind: type[np.integer[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the integers of a tensor of the file, in its shape."""
    values = model.Buffers(tensor.Buffer()).DataAsNumpy()
    return np.asarray(values).view(kind).reshape(tensor.ShapeAsNumpy())


@torch.no_grad()
def fill(network: nn.Module, convolutions: list[Layer], *, transposed: bool = False) -> None:
    """Write folded convolutions into a network's convolutions, and their biases into the batch norms that follow.

    Args:
        network: the network; each of its convolutions is followed by a batch norm.
        convolutions: at least as many as the network has; further ones belong to another head and are ignored.
        transposed: whether the rows of their training pictures are the columns of ours.

    Raises:
        ValueError: they do not fit.
    """
    own = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    pairs = list(zip(own[::2], own[1::2], strict=True))
    if len(convolutions) < len(pairs):
        raise ValueError(f"it has {len(convolutions)} convolutions, not {len(pairs)}")
    for (layer, norm), folded in zip(pairs, convolutions, strict=False):
        weight = folded.weight.transpose(2, 3) if transposed else folded.weight
        if (
            not isinstance(layer, nn.Conv2d)
            or not isinstance(norm, nn.BatchNorm2d)
            or weight.shape != layer.weight.shape
        ):
            raise ValueError(f"a convolution is {tuple(weight.shape)} instead of {tuple(layer.weight.shape)}")
        assert norm.running_mean is not None and norm.running_var is not None
        layer.weight.copy_(weight)
        norm.weight.fill_(1.0)
        norm.bias.copy_(folded.bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)


@torch.no_grad()
def unfold(net: nn.Module, pictures: torch.Tensor) -> None:
    """Set batch norms that only add a bias to the statistics of pictures, with weights that keep all outputs the same.

    Args:
        net: the network; its mode, training or not, does not change.
        pictures: input pictures of shape (batch, channels, height, width).
    """
    training = net.training
    net.eval()

    def give(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        assert module.running_mean is not None and module.running_var is not None
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        gain = module.weight / (module.running_var + module.eps).sqrt()
        module.bias.add_((mean - module.running_mean) * gain)
        module.weight.copy_((variance + module.eps).sqrt() * gain)
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)

    hooks = [one.register_forward_pre_hook(give) for one in net.modules() if isinstance(one, nn.BatchNorm2d)]
    try:
        net(pictures)
    finally:
        for hook in hooks:
            hook.remove()
        net.train(training)
