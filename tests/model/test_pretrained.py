"""Starting weights: fetched from a local server, converted, and equal to the published description."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, MobileNetV3, _mobilenet_v3_conf

from spectro.errors import CheckpointError, DownloadError, TrainingError, WeightsError
from spectro.files import held
from spectro.model import checkpoint as checkpoints
from spectro.model import convert
from spectro.model.backbones import SpectrogramNet, load_weights, network_of, weights_identity
from spectro.model.metadata import DESCRIPTION_FILE, WEIGHTS_FILE
from spectro.model.pretrained import PRETRAINED, SPECS
from spectro.picture import spectrogram
from spectro.picture.frontend import log_mel
from spectro.picture.spec import SpectrogramSpec
from spectro.verbs.weights import WeightsSettings, run
from tests.servers import serving

ORIGINAL = os.environ.get("SPECTRO_TEST_MN04_AS")
"""The published file, if available."""


LEVELS = PRETRAINED["mn04_as"].levels
assert LEVELS is not None


def _published() -> nn.Module:
    """EfficientAT's mn04 built from torchvision's classes, as its paper and repository describe it."""
    settings, last = _mobilenet_v3_conf("mobilenet_v3_large", width_mult=0.4)
    block = partial(InvertedResidual, se_layer=partial(torchvision.ops.SqueezeExcitation, scale_activation=nn.Sigmoid))
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
    network = MobileNetV3(settings, last, num_classes=527, block=block, norm_layer=norm)
    first = network.features[0][0]
    network.features[0][0] = nn.Conv2d(1, first.out_channels, 3, stride=2, padding=1, bias=False)
    network.classifier = nn.Sequential(nn.Linear(384, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, 527))
    return network.eval()


def _original_names(network: nn.Module) -> dict[str, torch.Tensor]:
    """EfficientAT's names and shapes: squeeze-excitation has dense layers, and the classifier begins with pooling."""
    state = {}
    for name, value in network.state_dict().items():
        dense = ".fc1." in name or ".fc2." in name
        state[name] = value.flatten(1) if dense and value.ndim == 4 else value
    return state


@torch.no_grad()
def _vary(network: nn.Module) -> None:
    """Give every tensor distinct values, so that a misplaced one is noticed."""
    generator = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            low, high = (0.5, 1.5) if "running_var" in name or (value.ndim == 1 and "weight" in name) else (-0.2, 0.2)
            value.copy_(low + (high - low) * torch.rand(value.shape, generator=generator))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spectro" / "weights"


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the published names and shapes but other values, accepted as the published one."""
    network = _published()
    _vary(network)
    path = tmp_path / "mn04_as_mAP_432.pt"
    torch.save(_original_names(network), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(PRETRAINED, "mn04_as", replace(PRETRAINED["mn04_as"], sha256=digest))
    return path


def _inputs() -> torch.Tensor:
    return torch.randint(0, 256, (2, 1, 128, 288), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.inference_mode()
def _compare(original: Path, cache: Path) -> None:
    network = _published()
    given = torch.load(original, weights_only=True)
    own = network.state_dict()
    network.load_state_dict(
        {name: value.reshape(one.shape) for (name, one), value in zip(own.items(), given.values(), strict=True)}
    )
    convert.keep("mn04_as", original)
    assert [path.name for path in cache.iterdir()] == ["mn04_as.safetensors"]
    net = SpectrogramNet(network_of("mobilenet", "mn04_as"), 8).eval()
    told = load_weights(net, "mn04_as", SPECS["mn04_as"])
    assert "MIT" in told and "EfficientAT" in told
    pictures = _inputs()
    turned = pictures.flip(2)  # it was trained with the lowest band first
    expected = network.classifier[:2](network.features((turned - net.mean) / net.std).mean((2, 3)))
    difference = (net.embed(pictures) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5
    assert sum(value.numel() for value in net.backbone.parameters()) == PRETRAINED["mn04_as"].parameters


def test_converted_weights_match_the_published_network(original: Path, cache: Path) -> None:
    _compare(original, cache)


@pytest.mark.skipif(ORIGINAL is None, reason="SPECTRO_TEST_MN04_AS names no mn04_as_mAP_432.pt")
def test_the_published_weights_file_matches_the_published_network(cache: Path) -> None:
    _compare(Path(str(ORIGINAL)), cache)


@torch.inference_mode()
def test_pictures_reach_the_network_with_the_lowest_band_first() -> None:
    """For one waveform: our picture in our network, and EfficientAT's log-mel in the published network."""
    spec = replace(SPECS["mn04_as"], scale="full_scale", low=-50.0, high=25.0, log_offset=1e-5, trim_db=None)
    seconds = np.arange(spec.width * spec.hop_length) / spec.sample_rate
    rising = 0.3 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    noise = np.random.default_rng(1).normal(0, 0.02, len(seconds))
    samples = (rising + noise).astype(np.float32)
    shown = torch.from_numpy((log_mel(samples, spec)[:, : spec.width] * np.log(10) / 10 + 4.5) / 5).float()
    torch.manual_seed(0)
    network, net = _published(), SpectrogramNet("mn04", 8).eval()
    net.set_normalisation(**PRETRAINED["mn04_as"].normalisation(spec))
    own, body = net.backbone.state_dict(), list(network.state_dict().values())[:-2]
    net.backbone.load_state_dict(
        {name: body[place].reshape(one.shape) for place, (name, one) in enumerate(own.items())}
    )
    expected = network.classifier[:2](network.features(shown[None, None]).mean((2, 3)))
    picture = torch.from_numpy(spectrogram.render(samples, spec))[None, None]
    right, upside_down = ((net.embed(one) - expected).norm() for one in (picture, picture.flip(2)))
    assert right < 0.2 * upside_down


@torch.inference_mode()
def test_a_checkpoint_stores_the_band_order_of_its_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec, pictures = SPECS["mn04_as-16k"], _inputs()[:, :, :103]
    net = SpectrogramNet("mn04", 2).eval()
    checkpoints.save(checkpoints.Checkpoint.of(net=net, labels=("a", "b"), spec=spec), tmp_path)
    again = checkpoints.load(tmp_path).net
    torch.testing.assert_close(again(pictures), net(pictures))
    for start in (tmp_path, tmp_path / WEIGHTS_FILE):
        following = SpectrogramNet("mn04", 3)
        following.turned = False
        load_weights(following, str(start), spec)
        assert following.turned
    path = tmp_path / DESCRIPTION_FILE
    path.write_text(path.read_text().replace('"turned": true', '"turned": false'))
    torch.testing.assert_close(checkpoints.load(tmp_path).net(pictures.flip(2)), net(pictures))
    path.write_text(path.read_text().replace('"turned": false', '"turned": 1'))
    with pytest.raises(CheckpointError, match=r"normalisation\.turned: Expected 'bool', got 'int'"):
        checkpoints.load(tmp_path)


def test_weights_are_downloaded_once_and_interrupted_downloads_resume(
    original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = original.read_bytes()
    with serving({"/mn04_as_mAP_432.pt": content}) as server:
        own = replace(PRETRAINED["mn04_as"], url=server.url("/mn04_as_mAP_432.pt"))
        monkeypatch.setitem(PRETRAINED, "mn04_as", own)
        server.limit = len(content) // 2
        with pytest.raises(DownloadError, match=r"spectro weights mn04_as --from mn04_as_mAP_432\.pt"):
            convert.kept("mn04_as")
        server.limit = None
        assert run(WeightsSettings(names=["mn04_as"])) == 0
        count = len(server.asked)
        assert any(wanted for _path, wanted in server.asked), "it went on where it was cut off"
        assert convert.kept("mn04_as") == own.path and len(server.asked) == count
    body = set(SpectrogramNet("mn04", 2).backbone.state_dict())
    assert set(load_file(own.path)) == {*body, "classifier.weight", "classifier.bias"}
    told = capsys.readouterr().out
    assert "--spec mn04_as" in told and "--weights mn04_as" in told
    assert run(WeightsSettings()) == 0
    assert "cached in" in capsys.readouterr().out


def test_two_processes_that_need_the_same_weights_fetch_them_once(
    original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = original.read_bytes()
    with serving({"/mn04_as_mAP_432.pt": content}) as server, ThreadPoolExecutor(2) as pool:
        own = replace(PRETRAINED["mn04_as"], url=server.url("/mn04_as_mAP_432.pt"))
        monkeypatch.setitem(PRETRAINED, "mn04_as", own)
        assert set(pool.map(convert.kept, ["mn04_as"] * 2)) == {own.path}
        assert len(server.asked) == 1
    own.path.unlink()
    monkeypatch.setattr(convert, "WAIT_S", 0.0)
    with held(own.path.with_name(f".{own.path.name}.lock")), pytest.raises(WeightsError, match="is still fetching"):
        convert.kept("mn04_as")


def test_foreign_weight_files_and_unknown_names_are_refused(original: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(2)}, other)
    with pytest.raises(WeightsError, match=r"other\.pt: is not mn04_as_mAP_432\.pt of https.*its SHA-256 is"):
        convert.keep("mn04_as", other)
    with pytest.raises(WeightsError, match="is not a file"):
        convert.keep("mn04_as", tmp_path / "gone.pt")
    with pytest.raises(WeightsError, match="there are no starting weights 'mn99'; there are mn04_as"):
        convert.keep("mn99")
    with pytest.raises(WeightsError, match="--from takes the file of one set"):
        WeightsSettings(from_=other)
    assert not cache.exists()


def test_specs_and_backbones_that_do_not_fit_the_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"mel is .slaney. instead of .kaldi.*render with --spec mn04_as,"):
        PRETRAINED["mn04_as"].normalisation(SpectrogramSpec())
    absolute = replace(SPECS["mn04_as"], scale="full_scale", low=-50.0, high=50.0)
    with pytest.raises(WeightsError, match=r"log_offset is 0\.0 instead of 1e-05"):
        PRETRAINED["mn04_as"].normalisation(absolute)
    with pytest.raises(TrainingError, match="mn04_as are the weights of mn04, and not of vgg19"):
        network_of("vgg19", "mn04_as")
    assert network_of("vgg19", "auto") == "vgg19"
    assert weights_identity("mn04_as").endswith(PRETRAINED["mn04_as"].sha256)


@pytest.mark.parametrize("scale", ["full_scale", "clip_peak"])
def test_normalised_pixels_match_the_training_input_of_efficientat(scale: str) -> None:
    """EfficientAT: (ln(mel + 1e-5) + 4.5) / 5; with `clip_peak`, of the clip scaled to a peak of 10 dB."""
    spec = replace(SPECS["mn04_as"], scale="full_scale", low=-50.0, high=50.0, log_offset=1e-5)
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    decibels = log_mel(samples, spec)
    expected = (decibels * np.log(10) / 10 + 4.5) / 5
    if scale == "clip_peak":
        spec = SPECS["mn04_as"]
        expected = expected + (LEVELS.peak_db - decibels.max()) * np.log(10) / 10 / 5
        decibels = decibels - decibels.max()
    pixels = (decibels - spec.low) / (spec.high - spec.low)
    told = PRETRAINED["mn04_as"].normalisation(spec)
    np.testing.assert_allclose((pixels - told["mean"][0]) / told["std"][0], expected, atol=1e-3)
