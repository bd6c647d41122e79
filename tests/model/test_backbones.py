"""Loading of published weights, tested with state dicts of the true names and shapes."""

from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from spectro.errors import TrainingError, WeightsError
from spectro.model.backbones import SpectrogramNet, layers, load_weights, trainable
from spectro.picture.spec import SpectrogramSpec

NAMES = {"mobilenet": "mobilenetv2_100", "vgg16": "vgg16", "vgg19": "vgg19", "inceptionv3": "inception_v3"}
TWINS = [pytest.param(name, marks=pytest.mark.slow) if name == "vgg16" else name for name in NAMES]
"""Names of the networks; VGG16 is marked slow, since it takes the same path as VGG19 and as long."""
TORCHVISION = {
    "mobilenet": torchvision.models.mobilenet_v2,
    "vgg16": torchvision.models.vgg16,
    "vgg19": torchvision.models.vgg19,
    "inceptionv3": torchvision.models.inception_v3,
}


def _inputs(net: SpectrogramNet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = net.config["input_size"][1]
    return torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance relative to the expected vector's length: single features of a random network nearly cancel out."""
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def _vary(model: torch.nn.Module) -> torch.nn.Module:
    """Give each batch norm distinct statistics, so that a misplaced one is noticed."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            module.weight.uniform_(0.8, 1.2)
    return model.eval()


@pytest.mark.parametrize("name", TWINS)
@torch.inference_mode()
def test_timm_weight_files_reproduce_timm_features(name: str, tmp_path: Path) -> None:
    """The file has a head of 1,000 classes, as published; the features before it must be the same."""
    torch.manual_seed(1)
    published = _vary(timm.create_model(NAMES[name], pretrained=False))
    path = tmp_path / "weights.safetensors"
    save_file(published.state_dict(), path)
    net = SpectrogramNet(name, 8).eval()
    pictures = _inputs(net)
    assert load_weights(net, str(path), SpectrogramSpec()) == "file weights.safetensors"
    normalised = (pictures.float() - net.mean) / net.std
    expected = published.forward_head(published.forward_features(normalised), pre_logits=True)
    assert _distance(net.embed(pictures), expected) < 1e-3
    assert net(pictures).shape == (1, 8)


@pytest.mark.parametrize("name", TWINS)
@torch.inference_mode()
def test_torchvision_weight_files_reproduce_torchvision_features(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    options = {"aux_logits": True, "init_weights": False, "transform_input": False} if name == "inceptionv3" else {}
    published = _vary(TORCHVISION[name](weights=None, **options))
    path = tmp_path / "weights.pth"
    torch.save(published.state_dict(), path)
    net = SpectrogramNet(name, 8).eval()
    load_weights(net, str(path), SpectrogramSpec())
    pictures = _inputs(net)
    normalised = (pictures.float() - net.mean) / net.std
    last = "fc" if name == "inceptionv3" else "classifier"
    head = getattr(published, last)
    setattr(published, last, torch.nn.Identity() if name == "inceptionv3" else head[:-1])
    assert _distance(net.embed(pictures), published(normalised)) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_input_normalisation_matches_timm(name: str) -> None:
    net = SpectrogramNet(name, 4)
    config = timm.get_pretrained_cfg(NAMES[name])
    assert net.mean.flatten().tolist() == pytest.approx([255 * value for value in config.mean])
    assert net.std.flatten().tolist() == pytest.approx([255 * value for value in config.std])
    if name == "inceptionv3":
        assert net.config["input_size"] == (3, 299, 299)
        assert net.mean.flatten().tolist() == pytest.approx([127.5] * 3)


def test_a_gray_picture_gives_the_same_output_as_three_equal_channels() -> None:
    net = SpectrogramNet("test_efficientnet", 4).eval()
    gray = torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(net(gray), net(gray.repeat(1, 3, 1, 1)))


def test_mismatched_weights_are_refused_with_a_list_of_tensors(tmp_path: Path) -> None:
    state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    state["conv_stem.weight"] = torch.zeros(1, 2, 3)
    del state["bn1.weight"]
    state["stranger.weight"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(SpectrogramNet("test_efficientnet", 4), str(path), SpectrogramSpec())
    for part in (
        "1 missing: bn1.weight",
        "1 unknown: stranger.weight",
        "1 of another shape: conv_stem.weight is (1, 2, 3)",
    ):
        assert part in str(caught.value)


def test_a_pickle_with_more_than_tensors_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(WeightsError, match="not loaded for safety"):
        load_weights(SpectrogramNet("test_efficientnet", 4), str(path), SpectrogramSpec())
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"text"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_broken_or_missing_weights_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}: "):
        load_weights(SpectrogramNet("test_efficientnet", 4), str(tmp_path / name), SpectrogramSpec())
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(SpectrogramNet("test_efficientnet", 4), str(tmp_path / "gone.pth"), SpectrogramSpec())


def test_auto_never_falls_back_to_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net = SpectrogramNet("test_efficientnet", 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"no route to the hub.*--weights PATH.*--weights none"):
        load_weights(net, "auto", SpectrogramSpec())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_auto_uses_timm_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = _vary(timm.create_model("test_efficientnet", pretrained=False, num_classes=0))
    net = SpectrogramNet("test_efficientnet", 4)
    asked: dict[str, object] = {}

    def fetch(name: str, **options: object) -> torch.nn.Module:
        asked.update(options, name=name)
        return fetched

    monkeypatch.setattr(timm, "create_model", fetch)
    assert load_weights(net, "auto", SpectrogramSpec()).startswith("timm test_efficientnet")
    assert asked == {"name": "test_efficientnet", "pretrained": True, "num_classes": 0}
    for name, value in fetched.state_dict().items():
        assert torch.equal(net.backbone.state_dict()[name], value)


def test_an_unknown_backbone_raises_an_error_with_similar_names() -> None:
    with pytest.raises(TrainingError, match="there is no backbone 'mobilenetv2'; near are mobilenetv2_"):
        SpectrogramNet("mobilenetv2", 4)


def test_a_fixed_size_backbone_refuses_other_sizes_and_names_the_options() -> None:
    net = SpectrogramNet("test_vit", 4)
    net.check_pictures(SpectrogramSpec(height=160, width=160, n_fft=2048))
    with pytest.raises(TrainingError, match=r"--spec\.height 160 --spec\.width 160"):
        net.check_pictures(SpectrogramSpec())


@pytest.mark.parametrize("name", [*NAMES, "resnet18", "test_vit"])
def test_layers_hold_every_parameter_once_from_input_to_head(name: str) -> None:
    net = SpectrogramNet(name, 4, hidden=16)
    grouped = [parameter for group in layers(net) for parameter in group]
    assert sorted(grouped) == sorted(parameter for parameter, _ in net.named_parameters())
    assert len(grouped) == len(set(grouped))
    assert all(parameter.startswith("head.") for parameter in layers(net)[-1])
    first = next(iter(dict(net.backbone.named_parameters())))
    if name != "test_vit":
        assert f"backbone.{first}" in layers(net)[0]


def test_plans_select_the_expected_parameters() -> None:
    net = SpectrogramNet("mobilenet", 4, hidden=16)
    everything = {name for name, _ in net.named_parameters()}
    assert trainable(net, "head") == {"head.1.weight", "head.1.bias", "head.4.weight", "head.4.bias"}
    assert trainable(net, "all") == everything
    last = trainable(net, "last-block")
    assert {"backbone.conv_head.weight", "backbone.blocks.5.0.conv_pw.weight", "head.4.bias"} <= last
    assert "backbone.blocks.4.2.conv_pwl.weight" not in last
    vgg = trainable(SpectrogramNet("vgg19", 4), "last-block")
    blocks = {name for name in vgg if name.startswith("backbone.features")}
    assert blocks == {f"backbone.features.{place}.{kind}" for place in (28, 30, 32, 34) for kind in ("weight", "bias")}


def test_the_gradual_plan_unfreezes_from_the_head_towards_the_input() -> None:
    net = SpectrogramNet("mobilenet", 4)
    steps = [trainable(net, "gradual", progress) for progress in (0.0, 0.1, 0.25, 0.4, 0.5, 1.0)]
    assert steps[0] == trainable(net, "head")
    assert all(earlier < later for earlier, later in pairwise(steps[:5]))
    assert steps[4] == steps[5] == trainable(net, "all")
    assert "backbone.conv_stem.weight" not in steps[3]
