from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn

from spectro.model.backbones import Plan, SpectrogramNet, trainable
from spectro.train import data as datamodule
from spectro.train import module
from spectro.train.finetune import finetune
from spectro.train.frozen_features import FrozenPrefix
from spectro.train.module import TrainingSettings
from tests.conftest import World, finetune_settings


def pictures(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 64, 96), dtype=torch.uint8, generator=generator)


def make(backbone: str, **options: float) -> SpectrogramNet:
    torch.manual_seed(0)
    return SpectrogramNet(backbone, 4, hidden=8, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", ["head", "last-block"])
@pytest.mark.parametrize("backbone", ["mobilenet", "vgg11_bn", "test_efficientnet", "convnext_atto", "resnet10t"])
def test_the_frozen_prefix_and_the_rest_together_equal_the_network(backbone: str, plan: Plan) -> None:
    net = make(backbone)
    parts = FrozenPrefix(net, plan)
    with torch.no_grad():
        activations = parts.start(pictures())
        assert all(len(one) == 3 for one in activations)
        assert torch.equal(parts.rest(activations), net(pictures()))


@pytest.mark.parametrize("plan", ["head", "last-block"])
def test_the_frozen_prefix_has_no_trained_parameters_and_no_dropout(plan: Plan) -> None:
    net = make("mobilenet", dropout=0.5)
    parts = FrozenPrefix(net, plan)
    trained = {id(value) for name, value in net.named_parameters() if name in trainable(net, plan)}
    start, rest = ({id(p) for p in one.parameters()} for one in (parts._start, parts._rest))
    assert trained <= rest and not trained & start
    dropouts = [module for module in parts._start.modules() if isinstance(module, nn.Dropout) and module.p]
    assert not dropouts
    net.train()
    assert any(isinstance(module, nn.Dropout) and module.training for module in parts._rest.modules())


def test_gradual_plans_and_untraceable_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="freezes no layer for the whole run"):
        FrozenPrefix(make("mobilenet"), "gradual")
    with pytest.raises(ValueError, match="lstm cannot be traced"):
        FrozenPrefix(make("lstm"), "head")


def test_a_frozen_prefix_with_dropout_or_drop_path_is_refused() -> None:
    net = make("convnext_atto")
    FrozenPrefix(net, "head")
    next(module for module in net.backbone.modules() if isinstance(module, nn.Dropout)).p = 0.1
    with pytest.raises(ValueError, match="drops features at random"):
        FrozenPrefix(net, "head")
    deep = make("mobilenet")
    deep.backbone.blocks[3][1].drop_path = DropPath(0.2)
    with pytest.raises(ValueError, match="drops features at random"):
        FrozenPrefix(deep, "last-block")


def test_both_parts_keep_the_dtype_of_the_network() -> None:
    net = make("resnet10t").to(torch.bfloat16)
    parts = FrozenPrefix(net, "head")
    with torch.no_grad():
        assert torch.equal(parts.rest(parts.start(pictures())), net(pictures()))


def refuse(*_: object) -> None:
    raise ValueError


@pytest.mark.parametrize(
    ("plan", "options"), [("head", {"ema": 0.5, "balance": "prior"}), ("last-block", {"workers": 1, "copies": "one"})]
)
def test_training_on_cached_features_matches_training_without_the_cache(
    world: World, tmp_path: Path, plan: Plan, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = TrainingSettings(epochs=5, learning_rate=0.01, plan=plan, mixup=0.0)
    passes = []
    original = SpectrogramNet.embed
    monkeypatch.setattr(SpectrogramNet, "embed", lambda *given: passes.append(given) or original(*given))

    def run(name: str) -> tuple[dict[str, torch.Tensor], pd.DataFrame, int]:
        passes.clear()
        finetune(finetune_settings(world.images, tmp_path / name, train=train, mask=False, **options))
        return (
            load_file(tmp_path / name / "model.safetensors"),
            pd.read_csv(tmp_path / name / "curves.csv"),
            len(passes),
        )

    fast, fast_curves, fast_passes = run("fast")
    monkeypatch.setattr(module, "FrozenPrefix", refuse)
    slow, slow_curves, slow_passes = run("slow")
    assert fast_passes < 0.4 * slow_passes
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-4)
    figures = ["train_loss", "valid_loss", "valid_uar"]
    pd.testing.assert_frame_equal(fast_curves[figures], slow_curves[figures], rtol=1e-3)


@pytest.mark.parametrize(
    ("train", "mask"),
    [
        (TrainingSettings(plan="head"), False),  # mixup
        (TrainingSettings(plan="head", mixup=0.0), True),
        (TrainingSettings(plan="head", mixup=0.0, cutmix=0.5), False),
        (TrainingSettings(plan="gradual", mixup=0.0), False),
        (TrainingSettings(plan="all", mixup=0.0), False),
    ],
)
def test_augmentation_and_unfrozen_layers_disable_the_feature_cache(
    world: World, tmp_path: Path, train: TrainingSettings, mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(datamodule.PictureDataModule, "keep_activations", never)
    finetune(finetune_settings(world.images, tmp_path / "run", train=replace(train, epochs=2), mask=mask))


def test_features_are_cached_only_if_they_fit_in_memory_and_save_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datamodule.PictureDataModule(world.images, batch_size=4)

    def kept(compute: Callable[[torch.Tensor], tuple[object, ...]], epochs: int = 9) -> bool:
        data.keep_activations(compute, epochs)  # type: ignore[arg-type]
        return not isinstance(next(iter(data.val_dataloader()))[0], torch.Tensor)

    assert not kept(lambda some: (some.float(), 3))
    assert not kept(lambda some: (some.float().reshape(-1, 2),))
    assert not kept(lambda some: (some.float(),), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(datamodule, "MEMORY_SHARE", 0.0)
        assert not kept(lambda some: (some.float(),))
    assert kept(lambda some: (some.float() + 1, some[:, 0, 0].clone()))
    given, targets, _groups = next(iter(data.val_dataloader()))
    data.drop_activations()
    plain, same_targets, _groups = next(iter(data.val_dataloader()))
    assert torch.equal(given[0], plain.float() + 1) and torch.equal(given[1], plain[:, 0, 0])
    assert torch.equal(targets, same_targets)
