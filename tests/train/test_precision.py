from pathlib import Path

import pytest
import torch
from torch import nn

from spectro.model.backbones import SpectrogramNet
from spectro.train.curves import Curves
from spectro.train.finetune import finetune
from spectro.train.precision import Float32Conv2d, spare_strided_depthwise
from spectro.train.trainer import make_trainer
from tests.conftest import World, finetune_settings


def test_only_strided_depthwise_convolutions_run_in_float32() -> None:
    torch.manual_seed(0)
    net = SpectrogramNet("mobilenet", 3)
    names = list(net.state_dict())
    assert spare_strided_depthwise(net) == 4
    assert list(net.state_dict()) == names
    kinds: dict[str, torch.dtype] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _given, found, name=name: kinds.update({name: found.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randint(0, 255, (1, 1, 64, 64), dtype=torch.uint8))
    spared = {name for name, module in net.named_modules() if isinstance(module, Float32Conv2d)}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == spared
    assert {kinds[name] for name in kinds.keys() - spared} == {torch.bfloat16}


def test_gradients_of_spared_convolutions_match_float32() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    net[0].load_state_dict(plain.state_dict())
    spare_strided_depthwise(net)
    given = torch.randn(2, 8, 9, 9, requires_grad=True)
    again = given.detach().clone().requires_grad_(True)
    plain(given).square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        net(again).square().sum().backward()
    torch.testing.assert_close(again.grad, given.grad)
    torch.testing.assert_close(net[0].weight.grad, plain.weight.grad)


@pytest.mark.parametrize("supported", [True, False])
def test_emulated_bfloat16_is_warned_of(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    supported: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": supported}, raising=False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for precision, expected, warned in (
        ("auto", "bf16-mixed" if supported else "32-true", False),
        ("bf16-mixed", "bf16-mixed", not supported),
        ("32-true", "32-true", False),
    ):
        caplog.clear()
        settings = finetune_settings(world.images, tmp_path, precision=precision, accelerator="cpu")
        trainer = make_trainer(settings, tmp_path, Curves(tmp_path))
        assert trainer.precision == expected
        assert ("no bfloat16 instructions" in caplog.text) == warned


def test_bfloat16_training_keeps_strided_depthwise_convolutions_in_float32(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(
        world.images, tmp_path / "bf16", precision="bf16-mixed", backbone="mobilenetv3_small_050"
    )
    net = finetune(settings).net
    assert any(isinstance(module, Float32Conv2d) for module in net.modules())
    whole = finetune_settings(world.images, tmp_path / "float32", backbone="mobilenetv3_small_050")
    assert not any(isinstance(module, Float32Conv2d) for module in finetune(whole).net.modules())
