"""Listeners' votes as targets, and agreement with listeners in the report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spectro.errors import CorpusError, TrainingError
from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.rendering.index import INDEX
from spectro.rendering.render import RenderSettings, render
from spectro.train.data import PictureDataModule
from spectro.train.finetune import finetune
from spectro.train.module import Classifier, TrainingSettings
from tests.conftest import SMALL, World, finetune_settings


@pytest.fixture(scope="module")
def images_with_votes(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of clips with listeners' votes: six of ten for the intended emotion, four for calm."""
    root = tmp_path_factory.mktemp("voted")
    rows = pd.read_parquet(world.images / INDEX)
    rows = rows[rows["copy"] == 0]
    table = rows[["path", "emotion", "speaker", "gender"]].assign(age="44")
    table["path"] = [str(Path(path).resolve()) for path in table["path"]]
    for emotion in ("angry", "calm", "happy"):
        votes = [6 * (meant == emotion) + 4 * (emotion == "calm") for meant in table["emotion"]]
        table[f"votes_{emotion}"] = ["", *map(str, votes[1:])]
    table.to_csv(root / "clips.csv", index=False)
    render(RenderSettings(corpus="folder", source=root / "clips.csv", out=root / "images", spec=SMALL, workers=1))
    return root / "images"


def test_targets_mix_the_label_with_the_votes(images_with_votes: Path) -> None:
    data = PictureDataModule(images_with_votes, batch_size=8, votes=0.5, train_on="all")
    rows, calm = data.rows["train"], data.labels.index("calm")
    for own, target, votes in zip(data.shares(), rows["target"], rows["votes_calm"], strict=True):
        expected = np.zeros(len(data.labels))
        expected[target] += 1.0 if np.isnan(votes) else 0.5 + 0.5 * 0.6
        expected[calm] += 0.0 if np.isnan(votes) else 0.5 * 0.4
        assert own == pytest.approx(expected, abs=1e-6)
    assert rows["votes_calm"].isna().sum() == 1
    _pictures, targets, _groups = next(iter(data.train_dataloader()))
    assert targets.shape == (8, len(data.labels)) and targets.dtype == torch.float32


def test_the_prior_is_the_mean_of_the_targets(images_with_votes: Path) -> None:
    data = PictureDataModule(images_with_votes, batch_size=8, votes=1.0, balance="prior", train_on="all")
    prior = data.prior()
    assert prior is not None
    assert prior[0].numpy() == pytest.approx(data.shares().mean(axis=0), abs=1e-6)
    without = PictureDataModule(images_with_votes, batch_size=8, balance="prior", train_on="all").prior()
    assert without is not None
    assert prior[0, data.labels.index("calm")] > without[0, data.labels.index("calm")] + 0.1


def test_the_loss_is_the_cross_entropy_with_soft_targets(world: World) -> None:
    model = Classifier(world.trained.net, TrainingSettings(label_smoothing=0.0, mixup=0.0))
    logits = torch.randn(4, world.trained.net.classes)
    shares = torch.softmax(torch.randn(4, world.trained.net.classes), dim=1)
    expected = -(shares * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
    assert float(model.loss(logits, shares)) == pytest.approx(float(expected), rel=1e-5)


def test_training_on_votes_is_a_separate_run_and_its_report_has_agreement(
    images_with_votes: Path, tmp_path: Path
) -> None:
    settings = finetune_settings(images_with_votes, tmp_path / "run", votes=0.5, train=TrainingSettings(epochs=1))
    checkpoint = finetune(settings)
    assert checkpoint.about.training.settings["votes"] == 0.5
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(replace(settings, votes=0.0))
    report = evaluate(EvaluateSettings(checkpoint=tmp_path / "run", index=images_with_votes, rounds=20))
    rows = pd.read_csv(tmp_path / "run" / "evaluation-test" / "predictions.csv")
    rows = rows[rows["votes_calm"].notna()]
    shares = [1.0 if p == t == "calm" else 0.6 if p == t else 0.4 if p == "calm" else 0.0
              for p, t in zip(rows["predicted"], rows["label"], strict=True)]  # fmt: skip
    assert report["listeners"]["clips"] == len(rows)
    assert report["listeners"]["agreement"]["value"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert list(report["groups"]["age"]) == ["30 to 44"]
    assert report["groups"]["age"]["30 to 44"]["uar"] == report["uar"]["value"]


def test_votes_for_labels_that_the_corpus_lacks_are_ignored(
    images_with_votes: Path, world: World, tmp_path: Path
) -> None:
    """One corpus has votes for calm but no clip with that label; the other has the label."""
    index = pd.read_parquet(images_with_votes / INDEX)
    (tmp_path / "spec.json").write_bytes((images_with_votes / "spec.json").read_bytes())
    (tmp_path / "images").symlink_to(images_with_votes / "images")
    index[index["emotion"] != "calm"].to_parquet(tmp_path / INDEX)
    data = PictureDataModule(tmp_path, world.images, batch_size=8, votes=0.5, train_on="all")
    own = (data.rows["train"]["corpus"] == "folder").to_numpy()
    shares = data.shares()
    assert own.any() and not shares[own][:, data.labels.index("calm")].any()
    assert shares.sum(axis=1) == pytest.approx(1.0)


def test_corpora_with_and_without_votes_can_train_together(
    images_with_votes: Path, world: World, tmp_path: Path
) -> None:
    data = PictureDataModule(images_with_votes, world.images, batch_size=8, votes=1.0, train_on="all")
    alone = (data.rows["train"]["corpus"] == "synthetic").to_numpy()
    assert set(data.shares()[alone].ravel()) == {0.0, 1.0}
    assert set(data.shares()[~alone].ravel()) > {0.0, 1.0}
    both = [images_with_votes, world.images]
    checkpoint = finetune(
        finetune_settings(
            images_with_votes, tmp_path, index=both, votes=1.0, train=TrainingSettings(epochs=1), train_on="all"
        )
    )
    assert checkpoint.about.labels == data.labels


def test_missing_votes_and_invalid_vote_weights_are_refused(world: World) -> None:
    with pytest.raises(CorpusError, match="no training clip has listeners' votes"):
        PictureDataModule(world.images, batch_size=8, votes=0.5)
    with pytest.raises(TrainingError, match=r"votes is 1\.5"):
        finetune_settings(world.images, Path("x"), votes=1.5)


def test_a_leaky_run_with_votes_is_evaluated_on_its_own_rendering(images_with_votes: Path, tmp_path: Path) -> None:
    settings = finetune_settings(
        images_with_votes, tmp_path / "run", votes=0.5, protocol="random-leaky", train=TrainingSettings(epochs=1)
    )
    trained = finetune(settings).about
    report = evaluate(EvaluateSettings(checkpoint=tmp_path / "run", index=images_with_votes, out=tmp_path / "report"))
    assert report["uar"]["value"] == trained.metrics["test"].uar
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(replace(settings, votes=0.4))
