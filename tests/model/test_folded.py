"""8-bit networks with folded batch norms: read from a TensorFlow Lite file, equal to the file's own arithmetic."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

from spectro.errors import WeightsError
from spectro.model import convert, folded
from spectro.model.backbones import SpectrogramNet, load_weights, network_of
from spectro.model.pretrained import PRETRAINED, SPECS
from spectro.picture.frontend import log_mel
from spectro.train.finetune import finetune
from spectro.train.module import TrainingSettings
from tests.conftest import World, finetune_settings

tflite = pytest.importorskip("tflite", reason="the extra weights is not installed")
flatbuffers = pytest.importorskip("flatbuffers")

ORIGINAL = os.environ.get("SPECTRO_TEST_YAMNET")
"""Google's yamnet.tflite, if available; the comparison with its own outputs needs the package ai-edge-litert."""
PHOTOGRAPHS = os.environ.get("SPECTRO_TEST_MOBILENETV2")
"""Google's tf2_mobilenet_v2_1.0_224_ptq.tflite, likewise."""
YAMNET = [(32, 1, 2), *((64, 32, 1), (128, 64, 2), (128, 128, 1), (256, 128, 2), (256, 256, 1), (512, 256, 2)),
          *([(512, 512, 1)] * 5), (1024, 512, 2), (1024, 1024, 1)]  # fmt: skip
"""YAMNet's layers: outputs, inputs, stride; all but the first are a depthwise and a pointwise convolution."""


class Quantised:
    """A layer of 8-bit integers, with its float values: a convolution, or a dense layer of size 0."""

    def __init__(self, generator: np.random.Generator, outputs: int, inputs: int, size: int, depthwise: bool) -> None:
        shape = (1, size, size, outputs) if depthwise else (outputs, size, size, inputs) if size else (outputs, inputs)
        self.depthwise, self.dense, self.shape = depthwise, not size, shape
        size = size or 1
        self.integers = generator.integers(-127, 128, shape).astype(np.int8)
        spread = 0.02 / np.sqrt(size * size * (1 if depthwise else inputs))
        scales = generator.uniform(0.5, 1.5, 1 if self.dense else outputs).astype(np.float32)
        self.scales = scales * np.float32(spread)
        self.step = 0.05
        self.biases = generator.integers(-2000, 2000, outputs).astype(np.int32)

    @property
    def weight(self) -> np.ndarray:
        """The float values in TensorFlow's order: a depthwise convolution has outputs last."""
        axis = [1, 1, 1, -1] if self.depthwise else [-1] + [1] * (len(self.shape) - 1)
        return self.integers * self.scales.reshape(axis)

    @property
    def bias(self) -> np.ndarray:
        return (self.biases * self.scales * self.step).astype(np.float32)


def _write(path: Path, layers: list[Quantised]) -> None:
    """Write a TensorFlow Lite file with only these layers."""
    builder = flatbuffers.Builder(1 << 20)
    buffers, tensors, operators = [], [], []

    def vector(values: np.ndarray) -> int:
        return int(builder.CreateNumpyVector(np.ascontiguousarray(values).ravel()))

    def buffer(content: np.ndarray | None) -> int:
        data = vector(content.view(np.uint8)) if content is not None else 0
        tflite.BufferStart(builder)
        if content is not None:
            tflite.BufferAddData(builder, data)
        buffers.append(tflite.BufferEnd(builder))
        return len(buffers) - 1

    def tensor(kind: int, shape: tuple[int, ...], content: np.ndarray | None, scales: np.ndarray) -> int:
        place, sizes, steps = buffer(content), vector(np.array(shape, np.int32)), vector(scales.astype(np.float32))
        tflite.QuantizationParametersStart(builder)
        tflite.QuantizationParametersAddScale(builder, steps)
        quantisation = tflite.QuantizationParametersEnd(builder)
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, sizes)
        tflite.TensorAddType(builder, kind)
        tflite.TensorAddBuffer(builder, place)
        tflite.TensorAddQuantization(builder, quantisation)
        tensors.append(tflite.TensorEnd(builder))
        return len(tensors) - 1

    buffer(None)
    for layer in layers:
        given = tensor(tflite.TensorType.INT8, (1, 8, 8, 1), None, np.array([layer.step]))
        weight = tensor(tflite.TensorType.INT8, layer.shape, layer.integers.ravel(), layer.scales)
        bias = tensor(tflite.TensorType.INT32, layer.biases.shape, layer.biases, layer.step * layer.scales)
        inputs = vector(np.array([given, weight, bias], np.int32))
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, 2 if layer.dense else int(layer.depthwise))
        tflite.OperatorAddInputs(builder, inputs)
        operators.append(tflite.OperatorEnd(builder))
    codes = []
    kinds_of_layer = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    for code in (getattr(tflite.BuiltinOperator, name) for name in kinds_of_layer):
        tflite.OperatorCodeStart(builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, code)
        tflite.OperatorCodeAddBuiltinCode(builder, code)
        codes.append(tflite.OperatorCodeEnd(builder))

    def objects(start: object, found: list[int]) -> int:
        start(builder, len(found))  # type: ignore[operator]
        for one in reversed(found):
            builder.PrependUOffsetTRelative(one)
        return int(builder.EndVector())

    listed, run = (
        objects(tflite.SubGraphStartTensorsVector, tensors),
        objects(tflite.SubGraphStartOperatorsVector, operators),
    )
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, listed)
    tflite.SubGraphAddOperators(builder, run)
    graphs = objects(tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(builder)])
    kinds, kept = objects(tflite.ModelStartOperatorCodesVector, codes), objects(tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, kinds)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddBuffers(builder, kept)
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    path.write_bytes(builder.Output())


def _yamnet() -> list[Quantised]:
    generator = np.random.default_rng(5)
    layers = [Quantised(generator, 32, 1, 3, depthwise=False)]
    for outputs, inputs, _stride in YAMNET[1:]:
        layers += [Quantised(generator, inputs, 1, 3, True), Quantised(generator, outputs, inputs, 1, False)]
    return [*layers, Quantised(generator, 5, 1024, 0, False)]


def _run(layers: list[Quantised], frames: torch.Tensor) -> torch.Tensor:
    """Compute YAMNet's features from frames (batch, 1, time, bands): TensorFlow's padding, ReLU6, a mean."""
    strides = [YAMNET[0][2], *(stride for _out, _in, own in YAMNET[1:] for stride in (own, 1))]
    values = frames
    for layer, stride in zip(layers[:-1], strides, strict=True):
        order = (3, 0, 1, 2) if layer.depthwise else (0, 3, 1, 2)
        weight = torch.from_numpy(layer.weight.transpose(order).copy())
        size, (height, width) = weight.shape[-1], values.shape[2:]
        missing = [max(0, (-(-side // stride) - 1) * stride + size - side) for side in (width, height)]
        values = nn.functional.pad(values, [one for all_ in missing for one in (all_ // 2, all_ - all_ // 2)])
        groups = values.shape[1] if layer.depthwise else 1
        values = nn.functional.conv2d(values, weight, torch.from_numpy(layer.bias), stride, groups=groups)
        values = values.clamp(0, 6)
    return values.mean((2, 3))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.inference_mode()
def test_yamnet_reproduces_the_computation_of_its_tflite_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, path = _yamnet(), tmp_path / "yamnet.tflite"
    _write(path, layers)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(PRETRAINED, "yamnet", replace(PRETRAINED["yamnet"], sha256=digest))
    convert.keep("yamnet", path)
    net = SpectrogramNet(network_of("mobilenet", "yamnet"), 8).eval()
    load_weights(net, "yamnet", SPECS["yamnet"])
    pictures = torch.randint(0, 256, (2, 1, 64, 288), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = ((pictures - net.mean) / net.std).flip(2).transpose(2, 3)  # rows are frames, lowest band first
    expected = _run(layers, frames)
    assert expected.std() > 0.01 * expected.abs().max()
    assert (net.embed(pictures) - expected).abs().max() < 1e-4 * expected.abs().max()
    weight, bias = convert.output_layer("yamnet")
    np.testing.assert_allclose(weight.numpy(), layers[-1].weight, rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), layers[-1].bias, rtol=1e-6)


def test_unfolding_batch_norms_keeps_outputs_in_evaluation_and_training(tmp_path: Path) -> None:
    _write(tmp_path / "yamnet.tflite", _yamnet())
    net = SpectrogramNet("yamnet", 3, dropout=0.0).eval()
    folded.fill(net.backbone, folded.read(tmp_path / "yamnet.tflite")[:-1], transposed=True)
    pictures = torch.randint(0, 256, (4, 1, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        before = net(pictures)
        folded.unfold(net, pictures)
        after = net(pictures)
        training = net.train()(pictures)
    first = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert first.running_mean is not None and first.running_mean.abs().max() > 0.01
    for found in (after, training):
        torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-3)


def test_training_sets_folded_norms_to_the_statistics_of_its_pictures(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If norms are never trained, they keep their initial statistics: those of training pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = timm.create_model("mobilenetv2_100", num_classes=0)
    path = PRETRAINED["mobilenetv2_tflite"].path
    path.parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    head = TrainingSettings(epochs=1, plan="head")
    changes = {"backbone": "mobilenet", "weights": "mobilenetv2_tflite", "train": head, "test": False}
    net = finetune(finetune_settings(world.images, tmp_path / "run", **changes)).net
    first = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert first.running_var is not None
    assert first.running_var.min() != 1.0
    torch.testing.assert_close(first.weight, (first.running_var + first.eps).sqrt() / (1 + first.eps) ** 0.5)


def test_files_without_the_yamnet_weights_are_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (
        ("text", b"hello, this is no network"),
        ("short", b""),
        ("few", _yamnet()[-3:]),
        ("body", _yamnet()[:-1]),
    ):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            _write(path, content)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(PRETRAINED, "yamnet", replace(PRETRAINED["yamnet"], sha256=digest))
        with pytest.raises(WeightsError, match=f"{name}: does not hold the weights yamnet"):
            convert.keep("yamnet", path)


def test_networks_trained_on_photographs_normalise_every_spec_alike() -> None:
    own = PRETRAINED["mobilenetv2_tflite"]
    assert own.normalisation(SPECS["yamnet"]) == own.normalisation(SPECS["mn04_as"])
    net = SpectrogramNet(network_of("mobilenet", "mobilenetv2_tflite"), 3)
    net.set_normalisation(**own.normalisation(SPECS["mn04_as"]))
    assert (net.mean.unique().item(), net.std.unique().item()) == (127.5, 127.5)


@pytest.mark.skipif(ORIGINAL is None, reason="SPECTRO_TEST_YAMNET names no yamnet.tflite")
def test_the_published_yamnet_agrees_with_the_tflite_interpreter(cache: Path) -> None:
    """Compare the file's own classifier on our features of a sound with the interpreter's output for the sound."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = Path(str(ORIGINAL))
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()
    given, gives = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    model = tflite.Model.GetRootAs(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    last = next(
        graph.Operators(n) for n in range(graph.OperatorsLength() - 1, 0, -1) if graph.Operators(n).InputsLength() == 3
    )
    values, weight, bias = (graph.Tensors(last.Inputs(number)) for number in range(3))
    scale, step = weight.Quantization().ScaleAsNumpy(), values.Quantization().ScaleAsNumpy()
    numbers = [model.Buffers(one.Buffer()).DataAsNumpy() for one in (weight, bias)]
    classes = torch.from_numpy((numbers[0].view(np.int8).reshape(weight.ShapeAsNumpy()) * scale).astype(np.float32))
    offsets = torch.from_numpy((numbers[1].view(np.int32) * scale * step).astype(np.float32))
    convert.keep("yamnet", path)
    net = SpectrogramNet("yamnet", 8).eval()
    load_weights(net, "yamnet", SPECS["yamnet"])
    generator = np.random.default_rng(0)
    seconds = np.arange(given["shape"].prod()) / 16_000
    tone = 0.4 * np.sin(2 * np.pi * 440 * seconds)
    for sound in (tone, generator.normal(0, 0.1, len(seconds)), tone * (seconds % 0.2 < 0.1)):
        samples = sound.astype(np.float32)
        interpreter.set_tensor(given["index"], samples.reshape(given["shape"]))
        interpreter.invoke()
        expected = interpreter.get_tensor(gives["index"]).ravel()
        centred = log_mel(np.concatenate([np.zeros(120, np.float32), samples]), SPECS["yamnet"])[:, 2:98]
        shown = np.log(10 ** (centred / 10) + 1e-3)
        with torch.inference_mode():
            features = net.backbone(torch.from_numpy(shown.astype(np.float32))[None, None])
            found = torch.sigmoid(features @ classes.T + offsets)[0].numpy()
        assert np.corrcoef(found, expected)[0, 1] > 0.99


@pytest.mark.skipif(PHOTOGRAPHS is None, reason="SPECTRO_TEST_MOBILENETV2 names no tf2_mobilenet_v2_1.0_224_ptq.tflite")
def test_the_published_mobilenetv2_agrees_with_the_tflite_interpreter() -> None:
    """With TensorFlow's padding, which timm's network used for training does not have."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = Path(str(PHOTOGRAPHS))
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()
    given, gives = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = given["quantization"]
    convolutions = folded.read(path)
    network = timm.create_model("mobilenetv2_100", num_classes=0, pad_type="same").eval()
    folded.fill(network, convolutions)
    classes = convolutions[-1]
    for photograph in load_sample_images().images:
        pixels = np.ascontiguousarray(photograph[100:324, 100:324])
        interpreter.set_tensor(given["index"], pixels[None])
        interpreter.invoke()
        expected = interpreter.get_tensor(gives["index"])[0].astype(np.float64)
        shown = torch.from_numpy((pixels.astype(np.float32) - zero) * scale).permute(2, 0, 1)[None]
        with torch.inference_mode():
            logits = network(shown) @ classes.weight.flatten(1).T + classes.bias
        assert np.corrcoef(torch.softmax(logits, dim=1)[0].numpy(), expected)[0, 1] > 0.99
