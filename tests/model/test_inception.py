"""InceptionV3 from TensorFlow.js modules, converted by a script outside the package."""

import base64
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spectro.errors import WeightsError
from spectro.model import convert
from spectro.model.backbones import SpectrogramNet, load_weights, network_of
from spectro.picture.spec import SpectrogramSpec
from tests import scripts


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.load("inceptionv3_from_tfjs")


def _module(content: str) -> str:
    return f"!function(a){{module.exports=a()}}(function(){{return {content}}})"


def test_tensors_are_read_across_shards(script: ModuleType, tmp_path: Path) -> None:
    told = (
        '{weightsManifest:[{paths:["group1-shard1of2.bin"],weights:['
        '{name:"conv2d_1/kernel",shape:[3,3,3,8],dtype:"float32",quantization:{min:-.5,scale:.01,dtype:"uint8"}},'
        '{name:"batch_normalization_1/beta",shape:[8],dtype:"float32",quantization:{min:1e-3,scale:2e-2,dtype:"uint8"}}'
        "]}]}"
    )
    integers = np.random.default_rng(0).integers(0, 256, 224).astype(np.uint8)
    (tmp_path / "model.min.js").write_text(_module(told))
    for number, part in enumerate((integers[:100], integers[100:]), 1):
        text = base64.b64encode(part.tobytes()).decode()
        (tmp_path / f"group1-shard{number}of2.min.js").write_text(_module(f'"{text}"'))
    found = script.tensors(tmp_path)
    np.testing.assert_allclose(found["conv2d_1/kernel"], integers[:216].reshape(3, 3, 3, 8) * 0.01 - 0.5, atol=1e-6)
    np.testing.assert_allclose(found["batch_normalization_1/beta"], integers[216:] * 0.02 + 0.001, atol=1e-6)
    (tmp_path / "group1-shard2of2.min.js").write_text(_module('""'))
    with pytest.raises(SystemExit, match="the manifest lists 224 bytes, but the shards hold 100"):
        script.tensors(tmp_path)


@torch.inference_mode()
def test_keras_layers_are_mapped_to_torchvision_names(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random tensors with Keras's numbering arrive with the right shapes and values in the network for training."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net = SpectrogramNet(network_of("inceptionv3", "inceptionv3_tfjs"), 3).eval()
    generator, given = np.random.default_rng(0), {}
    own = {name: value for name, value in net.backbone.state_dict().items() if not name.startswith("AuxLogits")}
    layers = [name.removesuffix(".conv.weight") for name in own if name.endswith(".conv.weight")]
    assert len(layers) == 94
    for number, layer in enumerate(layers, 1):
        outputs, inputs, height, width = own[f"{layer}.conv.weight"].shape
        kernel = generator.normal(0, 0.01, (height, width, inputs, outputs)).astype(np.float32)
        given[f"conv2d_{number}/kernel"] = kernel
        for part in ("beta", "moving_mean", "moving_variance"):
            given[f"batch_normalization_{number}/{part}"] = generator.uniform(0.5, 1, outputs).astype(np.float32)
    save_file(script.in_torchvision_names(given), tmp_path / "inception.safetensors")
    convert.keep("inceptionv3_tfjs", tmp_path / "inception.safetensors")
    load_weights(net, "inceptionv3_tfjs", SpectrogramSpec())
    state = net.backbone.state_dict()
    for number, layer in ((1, layers[0]), (60, layers[59]), (94, layers[93])):
        kernel = given[f"conv2d_{number}/kernel"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(state[f"{layer}.conv.weight"].numpy(), kernel)
        variance = given[f"batch_normalization_{number}/moving_variance"]
        np.testing.assert_array_equal(state[f"{layer}.bn.running_var"].numpy(), variance)
        assert state[f"{layer}.bn.weight"].unique().tolist() == [1.0]
    assert (net.mean.unique().item(), net.std.unique().item()) == (0.0, 255.0)


def test_missing_converted_weights_raise_an_error_that_names_the_script() -> None:
    with pytest.raises(WeightsError, match=r"with scripts/inceptionv3_from_tfjs\.py of spectro's repository, then run"):
        convert.keep("inceptionv3_tfjs")


def test_a_file_with_missing_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "some.safetensors")
    with pytest.raises(WeightsError, match=r"does not hold the weights inceptionv3_tfjs \(\d+ tensors are missing"):
        convert.keep("inceptionv3_tfjs", tmp_path / "some.safetensors")
