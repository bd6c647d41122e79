"""Adaptation of a checkpoint to recordings without labels."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from spectro.cli import run_verb
from spectro.engines.base import batch
from spectro.errors import PredictionError
from spectro.model import batch_norms, checkpoint
from spectro.model.backbones import SpectrogramNet
from spectro.model.checkpoint import Checkpoint
from spectro.model.metadata import CARD_FILE, DESCRIPTION_FILE, WEIGHTS_FILE, SpeechDetector
from spectro.predict.adapt import SHARE, adapted, with_pictures
from spectro.predict.predictor import Predictor
from tests.conftest import SMALL, World, WriteWav, voice


@pytest.fixture
def recordings(wav: WriteWav, tmp_path: Path) -> Path:
    """Return a folder of four recordings with speech."""
    for number in range(4):
        wav(f"calls/{number}.wav", voice() * 0.5**number)
    return tmp_path / "calls"


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_adapted_statistics_are_those_of_all_pictures_together(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(6_000, 3, 2, 2, generator=generator)
    new = 3 + 2 * torch.randn(int(6_000 * share / (1 - share)), 3, 2, 2, generator=generator)
    net = nn.Sequential(nn.BatchNorm2d(3))
    batch_norms.calibrate(net, [old])
    batch_norms.adapt(net, new.split(len(new) // 4), share)
    both = torch.cat([old, new]).transpose(0, 1).flatten(1)
    (norm,) = batch_norms.found(net)
    torch.testing.assert_close(norm.running_mean, both.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, both.var(1), rtol=2e-3, atol=0)
    assert not norm.training and norm.momentum == nn.BatchNorm2d(3).momentum


def test_a_share_of_one_forgets_the_old_statistics() -> None:
    new = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    fresh, used = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    batch_norms.calibrate(used, [new + 5])
    batch_norms.calibrate(fresh, [new])
    batch_norms.adapt(used, [new], 1.0)
    torch.testing.assert_close(used.state_dict(), fresh.state_dict())


def test_frozen_batch_norms_are_adapted_too() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3).requires_grad_(False))
    batch_norms.adapt(net, [5 + torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))], 1.0)
    assert net[0].running_mean.min() > 4 and (net[1].running_var - 1).abs().max() < 0.3
    assert net[1].running_mean.abs().max() < 0.1  # of what the first returns


def test_statistics_that_the_stored_format_cannot_hold_are_refused(world: World) -> None:
    given = checkpoint.load(world.checkpoint)
    given = Checkpoint(net=given.net, about=replace(given.about, dtype="float16"))
    batch_norms.found(given.net)[0].running_var.fill_(1e9)
    with pytest.raises(PredictionError, match="not finite in float16 after adaptation"):
        adapted(given, [np.full(SMALL.shape, value, np.uint8) for value in (0, 255)], of="it")


def test_batches_take_each_picture_once_from_the_whole_sequence() -> None:
    for pictures, size in ((1, 8), (8, 8), (15, 8), (16, 8), (40, 8)):
        parts = batch_norms.strided(pictures, size)
        assert sorted(place for part in parts for place in part) == list(range(pictures))
        assert all(min(size, pictures) <= len(part) < 2 * size for part in parts)


def test_only_the_statistics_change_and_the_given_checkpoint_stays_as_it_was(world: World) -> None:
    given = checkpoint.load(world.checkpoint)
    before = copy.deepcopy(given.net.state_dict())
    pictures = list(np.random.default_rng(0).integers(0, 256, (5, *SMALL.shape)).astype(np.uint8))
    found = adapted(given, pictures, of="it")
    torch.testing.assert_close(given.net.state_dict(), before, rtol=0, atol=0)
    after = found.net.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed and all("running_" in name or "num_batches" in name for name in changed)
    assert found.about.adapted is not None
    assert (found.about.adapted.recordings, found.about.adapted.share) == (5, SHARE)


@pytest.mark.parametrize(
    ("pictures", "share", "message"),
    [(1, 0.5, "at least 2 are needed"), (2, 0.0, "share is 0.0"), (2, 1.5, "share is 1.5")],
)
def test_impossible_adaptations_are_refused(world: World, pictures: int, share: float, message: str) -> None:
    shown = [np.zeros(SMALL.shape, np.uint8)] * pictures
    with pytest.raises(PredictionError, match=message):
        adapted(checkpoint.load(world.checkpoint), shown, of="it", share=share)


def test_features_are_adapted_in_a_network_without_batch_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SpectrogramNet("convnext_atto", 2).eval()
    made = Checkpoint.of(net, labels=("a", "b"), spec=SMALL)
    pictures = list(np.random.default_rng(0).integers(0, 255, (12, *SMALL.shape)).astype(np.uint8))
    with pytest.raises(PredictionError, match=r"'convnext_atto' has no batch norms, .* train it again"):
        adapted(made, pictures, of="it")
    shown, norm = torch.from_numpy(batch(pictures)), net.add_feature_norm()
    with torch.inference_mode():
        plain = net.backbone((shown - net.mean) / net.std)
        batch_norms.calibrate(net, [shown], norms=[norm])
        norm.keep()
        torch.testing.assert_close(net.embed(shown), plain)
        norm.shift.add_(3)  # as if the training pictures had had other features
        norm.running_mean.add_(3)
        found = adapted(made, pictures, of="it", share=1.0)
        torch.testing.assert_close(found.net.embed(shown), plain + 3, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(net.embed(shown), plain, atol=1e-4, rtol=1e-4)
    checkpoint.save(found, tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(checkpoint.load(tmp_path).net(shown), found.net(shown))


def test_few_clips_of_a_voice_move_its_features_less_than_many() -> None:
    generator = torch.Generator().manual_seed(0)
    training = 2 + 3 * torch.randn(4096, 5, generator=generator)
    moved = {}
    for clips in (2, 4, 400):
        norm = batch_norms.FeatureNorm(5)
        net = torch.nn.Sequential(torch.nn.Identity(), norm)
        batch_norms.calibrate(net, [training], norms=[norm])
        norm.keep()
        batch_norms.adapt_to_voice(net, [7 + torch.randn(clips, 5, generator=generator)])
        assert norm.running_mean is not None
        moved[clips] = float((norm.running_mean - norm.shift).mean()) / 5
    assert moved == pytest.approx({2: 2 / 6, 4: 4 / 8, 400: 400 / 404}, abs=0.15)


def test_pictures_come_with_the_rows_of_their_recordings(world: World, recordings: Path) -> None:
    (recordings / "1.5.wav").write_bytes(b"RIFF")
    predictor, paths = Predictor(world.checkpoint), sorted(recordings.iterdir())
    pairs = list(with_pictures(predictor, paths, batch_size=2))
    assert [row.path for row, _picture in pairs] == list(map(str, paths))
    for path, (row, picture) in zip(paths, pairs, strict=True):
        if path.name == "1.5.wav":
            assert row.error and picture is None
        else:
            np.testing.assert_array_equal(picture, predictor.render(path))


def test_the_command_writes_a_checkpoint_and_leaves_out_what_failed(
    world: World, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recordings / "broken.wav").write_bytes(b"RIFF")
    out, again = tmp_path / "adapted", tmp_path / "again"
    for folder, share in ((out, "0.1"), (again, "0.5"), (out, "0.5")):  # an earlier adaptation is replaced
        arguments = [str(recordings), "--checkpoint", str(world.checkpoint), "--out", str(folder), "--share", share]
        assert run_verb("adapt", arguments) == 1
    printed = capsys.readouterr()
    assert "4 recordings are used, 0 hold no speech, 1 failed" in printed.err and "broken.wav" in printed.err
    assert "4 recordings are few" in printed.err
    assert f"--checkpoint {out}" in printed.out
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    assert "**Adapted to 4 recordings without labels**" in (out / CARD_FILE).read_text()
    clip = recordings / "0.wav"
    before, after = (Predictor(folder).predict_wav(clip).probabilities for folder in (world.checkpoint, out))
    assert max(abs(before[label] - after[label]) for label in before) > 1e-3
    expected = [Predictor(world.checkpoint).render(recordings / f"{number}.wav") for number in range(4)]
    found = Predictor(adapted(checkpoint.load(world.checkpoint), expected, of="it"))
    assert found.predict_wav(clip).probabilities == pytest.approx(after, abs=1e-5)
    assert run_verb("adapt", [str(recordings), "--checkpoint", str(out), "--out", str(tmp_path / "twice")]) == 2
    refusal = capsys.readouterr().err
    assert "is adapted already; adapt the one before: checkpoint (" in refusal
    assert "rendering" not in refusal  # nothing is done in vain


def test_recordings_beyond_the_maximum_are_sampled(
    world: World, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(recordings), "--checkpoint", str(world.checkpoint), "--most", "3", "--out"]
    made = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run_verb("adapt", [*arguments, str(tmp_path / name), "--seed", seed]) == 0
        made.append((tmp_path / name / WEIGHTS_FILE).read_bytes())
    assert "3 of 4 recordings are sampled" in capsys.readouterr().err
    assert made[0] == made[1] != made[2]


def test_recordings_without_speech_are_left_out(
    world: World, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, deaf = checkpoint.load(world.checkpoint), tmp_path / "deaf"
    detector = SpeechDetector(weight=(0.0,) * loaded.net.features, bias=-9.0)
    checkpoint.save(Checkpoint(net=loaded.net, about=replace(loaded.about, speech=detector)), deaf)
    arguments = [str(recordings), "--checkpoint", str(deaf), "--out", str(tmp_path / "out")]
    assert run_verb("adapt", arguments) == 2
    assert "0 recordings with speech; at least 2 are needed" in capsys.readouterr().err
    assert run_verb("adapt", [*arguments, "--min_speech", "0"]) == 0


def test_no_checkpoint_or_file_of_others_is_overwritten(
    world: World, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(world.checkpoint, own)
    for out, reason in ((own, "would be overwritten"), (world.checkpoint, "spectro did not make it")):
        assert run_verb("adapt", [str(recordings), "--checkpoint", str(own), "--out", str(out)]) == 2
        assert reason in capsys.readouterr().err
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        assert (own / name).read_bytes() == (world.checkpoint / name).read_bytes()


def test_an_evaluation_says_that_the_network_was_adapted(
    world: World, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapted"
    assert run_verb("adapt", [str(recordings), "--checkpoint", str(world.checkpoint), "--out", str(out)]) == 0
    arguments = ["--index", str(world.images), "--out", str(tmp_path / "report"), "--rounds", "10"]
    assert run_verb("evaluate", ["--checkpoint", str(out), *arguments]) == 0
    assert "adapted to 4 recordings without labels" in capsys.readouterr().out
