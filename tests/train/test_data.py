from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from spectro.errors import CorpusError, TrainingError
from spectro.model.backbones import SpectrogramNet
from spectro.picture import png
from spectro.rendering.index import read_index
from spectro.train.data import ClipSampler, PictureDataModule
from spectro.train.module import Classifier, TrainingSettings
from tests.conftest import World


def test_validation_and_test_hold_only_original_clips_of_their_own_speakers(world: World) -> None:
    data = PictureDataModule(world.images, copies="all", batch_size=8)
    speakers = {part: set(rows["speaker"]) for part, rows in data.rows.items()}
    assert not speakers["train"] & (speakers["valid"] | speakers["test"])
    assert not speakers["valid"] & speakers["test"]
    assert set(data.rows["train"]["copy"]) == {0, 1, 2}
    assert set(data.rows["valid"]["copy"]) == set(data.rows["test"]["copy"]) == {0}
    assert set().union(*speakers.values()) == {str(number) for number in range(1, 9)}


def test_batches_hold_the_rendered_pictures_and_their_labels(world: World) -> None:
    data = PictureDataModule(world.images, batch_size=4)
    pictures, targets, groups = next(iter(data.test_dataloader()))
    assert (pictures.dtype, tuple(pictures.shape), targets.dtype) == (torch.uint8, (4, 1, 40, 80), torch.int64)
    assert not groups.any()
    for picture, target, row in zip(pictures, targets, data.rows["test"].itertuples(), strict=False):
        expected = png.read(world.images / str(row.image)).pixels
        assert torch.equal(picture[0], torch.from_numpy(expected.copy()))
        assert data.labels[int(target)] == row.emotion


def test_pictures_are_read_from_a_folder_with_a_non_ascii_name(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "é 漢"
    folder.symlink_to(world.images)
    pictures, *_ = next(iter(PictureDataModule(folder, batch_size=4).test_dataloader()))
    assert torch.equal(pictures, next(iter(PictureDataModule(world.images, batch_size=4).test_dataloader()))[0])


def test_calibration_batches_are_of_nearly_equal_size(world: World) -> None:
    data = PictureDataModule(world.images, batch_size=7)
    sizes = [len(pictures) for pictures, *_ in data.calibration_dataloader()]
    assert sum(sizes) == len(data.rows["train"]) and max(sizes) - min(sizes) <= 1 and min(sizes) >= 7
    assert sum(len(pictures) for pictures, *_ in data.calibration_dataloader(9)) == 9


def test_the_leaky_copies_protocol_trains_on_copies_of_test_clips(world: World) -> None:
    data = PictureDataModule(world.images, copies="all", batch_size=8, protocol="random-leaky-copies")
    train, test = data.rows["train"], data.rows["test"]
    assert set(test["copy"]) == {0}
    assert set(train[train["clip_id"].isin(test["clip_id"])]["copy"]) == {1, 2}
    assert set(test["clip_id"]) < set(train["clip_id"])
    known = PictureDataModule(world.images, batch_size=8, protocol="random-leaky-copies").rows["train"]
    assert not set(known["clip_id"]) & set(test["clip_id"]), "copies train where they are asked for only"


@pytest.mark.parametrize("copies", ["one", "all", "none"])
def test_copies_are_sampled_according_to_the_setting(world: World, copies: str) -> None:
    data = PictureDataModule(world.images, copies=copies, batch_size=8)  # type: ignore[arg-type]
    rows, sampler = data.rows["train"], data.train_dataloader().sampler
    drawn: Counter[int] = Counter()
    for epoch in range(6):
        sampler.set_epoch(epoch)  # type: ignore[union-attr]
        chosen = rows.iloc[[draw.row for draw in sampler]]  # type: ignore[attr-defined]
        drawn.update(chosen["copy"].tolist())
        clips = chosen["clip_id"].value_counts()
        assert (clips == (3 if copies == "all" else 1)).all()
        assert len(clips) == rows["clip_id"].nunique()
    assert set(drawn) == ({0} if copies == "none" else {0, 1, 2})


def test_balanced_sampling_picks_labels_equally_often() -> None:
    rows = pd.DataFrame({"clip_id": [f"c{n}" for n in range(1000)], "target": [0] * 900 + [1] * 100, "group": 0})
    drawn = [rows["target"][draw.row] for draw in ClipSampler(rows, "one", True, seed=0)]
    assert 420 < sum(drawn) < 580
    plain = [rows["target"][draw.row] for draw in ClipSampler(rows, "one", False, seed=0)]
    assert sum(plain) == 100


def test_loss_weights_compensate_for_rare_labels(world: World) -> None:
    data = PictureDataModule(world.images, balance="loss", batch_size=8)
    weights = data.class_weights()
    counts = data.rows["train"].groupby("target").size()
    assert weights is not None
    present = weights[counts.index.tolist()] * torch.tensor(counts.tolist())
    torch.testing.assert_close(present, torch.full_like(present, present[0].item()))
    assert PictureDataModule(world.images, batch_size=8).class_weights() is None


def test_a_prior_keeps_logits_from_learning_label_frequencies() -> None:
    """If pictures are uninformative, equal logits have the lowest loss, however unequal the labels."""
    targets, net = torch.tensor([0] * 6 + [1] * 3 + [2]), SpectrogramNet("test_efficientnet", 3)
    settings = TrainingSettings(label_smoothing=0.0)
    prior = torch.tensor([[0.6, 0.3, 0.1]])
    for model, fits in (
        (Classifier(net, settings, prior=prior), True),
        (Classifier(net, settings), False),
    ):
        logits = torch.zeros(3, requires_grad=True)
        model.loss(logits.expand(10, 3), targets).backward()
        assert logits.grad is not None
        assert (float(logits.grad.abs().max()) < 1e-6) == fits


def test_the_prior_is_the_label_distribution_of_training_clips(world: World) -> None:
    data = PictureDataModule(world.images, balance="prior", batch_size=8)
    prior = data.prior()
    assert prior is not None
    shares = data.rows["train"]["target"].value_counts(normalize=True)
    assert prior[0][shares.index.tolist()].tolist() == pytest.approx(shares.tolist())
    assert PictureDataModule(world.images, batch_size=8).prior() is None


def test_targets_index_the_labels_of_a_label_scheme(world: World) -> None:
    data = PictureDataModule(world.images, label_scheme="emotion-gender", batch_size=8)
    assert len(data.labels) == 12
    rows = data.rows["train"]
    assert (rows["label"] == rows["gender"] + "_" + rows["emotion"]).all()
    assert [data.labels[target] for target in rows["target"]] == rows["label"].tolist()


def test_oversized_batches_and_unknown_label_schemes_are_refused(world: World) -> None:
    with pytest.raises(TrainingError, match="does not fill one batch of 5000"):
        PictureDataModule(world.images, batch_size=5000)
    with pytest.raises(CorpusError, match="unknown label scheme"):
        PictureDataModule(world.images, label_scheme="nope", batch_size=8)


def test_only_the_index_is_read_before_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "read", lambda *_: pytest.fail("a picture was read"))
    data = PictureDataModule(Path(world.images), batch_size=8)
    assert len(read_index(world.images)[0]) > len(data.rows["test"]) > 0
    data.train_dataloader()


def test_pictures_are_read_once_while_the_cache_has_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PictureDataModule(world.images, batch_size=4)
    read = []
    original = png.read
    monkeypatch.setattr(png, "read", lambda *given: read.append(given) or original(*given))
    loader = data.val_dataloader()
    first, count = [pictures for pictures, *_rest in loader], len(read)
    assert count == len(data.rows["valid"])
    second = [pictures for pictures, *_rest in loader]
    assert len(read) == count and all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    monkeypatch.setattr("spectro.train.data.KEPT_BYTES", 2 * first[0][0].nbytes)
    loader = data.val_dataloader()
    list(loader), list(loader)
    assert len(read) == count + 2 * count - 2
