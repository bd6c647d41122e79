"""The output layer of a checkpoint as the start of another network's."""

from pathlib import Path

import pytest
import torch

from spectro.errors import TrainingError
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet
from spectro.train.finetune import finetune
from spectro.train.heads import keep_head
from spectro.train.module import TrainingSettings
from tests.conftest import World, finetune_settings

PICTURES = torch.arange(2 * 40 * 80, dtype=torch.float32).reshape(2, 1, 40, 80) % 256


def test_shared_labels_keep_their_outputs_in_the_order_of_the_new_labels_and_new_labels_start_anew(
    world: World,
) -> None:
    given = checkpoints.load(world.checkpoint)
    labels = ("bored", *reversed(given.about.labels))
    net = SpectrogramNet(given.about.backbone, len(labels), hidden=given.about.hidden).eval()
    net.backbone.load_state_dict(given.net.backbone.state_dict())
    net.set_normalisation(given.about.normalisation.mean, given.about.normalisation.std)
    with torch.no_grad():
        before = net(PICTURES)
        keep_head(net, labels, str(world.checkpoint))
        after, expected = net(PICTURES), given.net(PICTURES)
    torch.testing.assert_close(after[:, 1:], expected.flip(1))
    assert torch.equal(after[:, 0], before[:, 0])


def test_a_hidden_layer_of_the_head_is_kept_too(world: World, tmp_path: Path) -> None:
    given, labels = SpectrogramNet("test_efficientnet", 2, hidden=5).eval(), ("calm", "happy")
    spec = checkpoints.load(world.checkpoint).about.spec
    checkpoints.save(checkpoints.Checkpoint.of(given, labels=labels, spec=spec), tmp_path / "hidden")
    net = SpectrogramNet("test_efficientnet", 2, hidden=5).eval()
    keep_head(net, labels, str(tmp_path / "hidden"))
    features = torch.rand(3, int(net.backbone.head_hidden_size))
    with torch.no_grad():
        torch.testing.assert_close(net.head(features), given.head(features))


def test_a_run_that_keeps_the_head_starts_from_the_checkpoints_answers(world: World, tmp_path: Path) -> None:
    still = TrainingSettings(epochs=1, learning_rate=1e-12, plan="head", mixup=0.0)
    found = {
        keep: finetune(
            finetune_settings(
                world.images, tmp_path / str(keep), weights=str(world.checkpoint), keep_head=keep, train=still
            )
        )
        for keep in (False, True)
    }
    given = checkpoints.load(world.checkpoint)
    with torch.no_grad():
        expected = given.net(PICTURES)
        torch.testing.assert_close(found[True].net(PICTURES), expected, atol=1e-4, rtol=1e-4)
        assert (found[False].net(PICTURES) - expected).abs().max() > 0.01
    settings = {keep: one.about.training.settings for keep, one in found.items() if one.about.training is not None}
    assert settings[True]["keep_head"] is True and "keep_head" not in settings[False]


def test_weights_without_a_head_that_fits_are_refused(world: World, tmp_path: Path) -> None:
    about = checkpoints.load(world.checkpoint).about
    net = SpectrogramNet(about.backbone, 2, hidden=about.hidden)
    with pytest.raises(TrainingError, match="no checkpoint, so it has no head to keep"):
        keep_head(net, ("calm", "happy"), "none")
    with pytest.raises(TrainingError, match=r"its labels are .*none of"):
        keep_head(net, ("female", "male"), str(world.checkpoint))
    with pytest.raises(TrainingError, match=f"set hidden to {about.hidden}, or keep_head to false"):
        keep_head(SpectrogramNet(about.backbone, 2, hidden=about.hidden + 3), ("calm", "happy"), str(world.checkpoint))
