"""Training on several corpora: sampling by temperature, labels that a corpus lacks, and a held-out corpus."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from spectro.corpora.datasets import synthetic
from spectro.errors import RenderError, TrainingError
from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet
from spectro.model.pretrained import SPECS
from spectro.rendering.render import RenderSettings, render
from spectro.train.conditions import ConditionSettings
from spectro.train.data import ClipSampler, PictureDataModule
from spectro.train.finetune import finetune
from spectro.train.module import Classifier, TrainingSettings
from spectro.verbs.finetune import run
from tests.conftest import SMALL, World, finetune_settings

SAVEE = {"a": "angry", "h": "happy", "su": "surprised"}


@pytest.fixture(scope="module")
def savee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a corpus of four speakers, with one label of its own and without one of the other corpus."""
    root = tmp_path_factory.mktemp("savee")
    for number, speaker in enumerate(("DC", "JE", "JK", "KL"), start=20):
        for code in SAVEE:
            for take in range(2):
                samples = synthetic.synthesise(number, {"su": "fearful"}.get(code, SAVEE[code]), take, 0)
                (root / "savee").mkdir(exist_ok=True)
                soundfile.write(root / "savee" / f"{speaker}_{code}{take + 1:02}.wav", samples, synthetic.SAMPLE_RATE)
    render(RenderSettings(corpus="savee", source=root / "savee", out=root / "images", spec=SMALL, workers=1))
    return root / "images"


def test_the_sampling_temperature_sets_the_share_of_each_corpus() -> None:
    rows = pd.DataFrame({"clip_id": [f"c{n}" for n in range(1000)], "target": 0, "group": [0] * 900 + [1] * 100})
    for temperature, share in ((1.0, 0.1), (0.5, 0.25), (0.0, 0.5)):
        sampler = ClipSampler(rows, "one", False, seed=0, temperature=temperature, clips=4000)
        drawn = Counter(rows["group"][draw.row] for draw in sampler)
        assert drawn.total() == len(sampler) == 4000
        assert drawn[1] / 4000 == pytest.approx(share, abs=0.03)


def test_a_shortened_epoch_samples_no_clip_twice() -> None:
    rows = pd.DataFrame({"clip_id": [f"c{n}" for n in range(100)], "target": 0, "group": 0})
    drawn = [draw.row for draw in ClipSampler(rows, "one", False, seed=0, clips=60)]
    assert len(set(drawn)) == 60


def test_labels_are_balanced_within_each_corpus() -> None:
    rows = pd.DataFrame(
        {"clip_id": [f"c{n}" for n in range(1000)], "target": [0] * 600 + [1] * 200 + [0] * 50 + [2] * 150}
    ).assign(group=[0] * 800 + [1] * 200)
    drawn = Counter(
        (rows["group"][draw.row], rows["target"][draw.row])
        for draw in ClipSampler(rows, "one", True, seed=0, temperature=0.0, clips=8000)
    )
    assert {place: round(count / 8000, 1) for place, count in drawn.items()} == pytest.approx(
        dict.fromkeys(drawn, 0.25), abs=0.051
    )


def test_balanced_labels_do_not_change_the_shares_of_the_corpora() -> None:
    rows = pd.DataFrame({"clip_id": [f"c{n}" for n in range(2400)]}).assign(
        group=np.repeat([0, 1, 2], 800), target=[*np.arange(800) % 8, *np.arange(800) % 4, *[0] * 800]
    )
    drawn = [draw.row for draw in ClipSampler(rows, "one", True, seed=0, temperature=0.5, clips=6000)]
    assert np.bincount(rows["group"].iloc[drawn]) / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_whole_number_is_a_corpus_temperature() -> None:
    rows = pd.DataFrame({"clip_id": [f"c{n}" for n in range(100)], "target": 0, "group": [0] * 80 + [1] * 20})
    drawn = [draw.row for draw in ClipSampler(rows, "one", True, seed=0, temperature=0, clips=4000)]
    assert np.bincount(rows["group"].iloc[drawn]) / 4000 == pytest.approx([0.5, 0.5], abs=0.04)


def test_possible_labels_are_known_per_corpus_and_duplicate_clips_are_refused(world: World, savee: Path) -> None:
    data = PictureDataModule(world.images, savee, batch_size=8)
    assert data.corpora == ("savee", "synthetic")
    assert {"surprised", "disgust", "calm"} <= set(data.labels)
    possible = {name: set() for name in data.corpora}
    for corpus, row in zip(data.corpora, data.possible(), strict=True):
        possible[corpus] = {label for label, there in zip(data.labels, row.tolist(), strict=True) if there}
    assert possible == {"savee": {"angry", "happy", "surprised"}, "synthetic": {"calm", "happy", "angry"}}
    _pictures, targets, groups = next(iter(data.test_dataloader()))
    rows = data.rows["test"]
    assert [data.corpora[group] for group in groups] == rows["corpus"].tolist()[: len(groups)]
    assert [data.labels[target] for target in targets] == rows["emotion"].tolist()[: len(groups)]
    with pytest.raises(RenderError, match="is in two of these renderings"):
        PictureDataModule(world.images, world.images, batch_size=8)


def test_renderings_with_different_specs_are_not_mixed(world: World, savee: Path, tmp_path: Path) -> None:
    render(
        RenderSettings(
            corpus="synthetic", source=world.corpus, out=tmp_path / "other", spec=replace(SMALL, low=-3.0), workers=1
        )
    )
    with pytest.raises(RenderError, match=r"was rendered with spec .*; render both with --spec"):
        PictureDataModule(savee, tmp_path / "other", batch_size=8)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_clip_ignores_labels_that_its_corpus_lacks(smoothing: float) -> None:
    """The loss of a clip is that of a softmax over only the labels of its own corpus."""
    generator = torch.Generator().manual_seed(0)
    net = SpectrogramNet("test_efficientnet", 4)
    possible = torch.tensor([[True, True, True, False], [True, False, True, True]])
    settings = TrainingSettings(label_smoothing=smoothing, mixup=0.0)
    model = Classifier(net, settings, prior=possible.float(), possible=possible)
    logits = torch.randn(2, 4, generator=generator, requires_grad=True)
    told = torch.tensor([[0.0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]])
    found = model.loss(logits, told)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    expected = [criterion(one[own][None], torch.tensor([1])) for one, own in zip(logits, possible, strict=True)]
    assert found.item() == pytest.approx(sum(one.item() for one in expected) / 2, rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert logits.grad[~possible].abs().max() < 1e-6 < logits.grad[possible].abs().min()


def test_cross_corpus_training_is_evaluated_on_the_held_out_corpus(
    world: World, savee: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(
        finetune_settings(world.images, tmp_path / "out", corpus_temperature=0.5, epoch_clips=32),
        index=[world.images, savee],
        protocol="cross-corpus",
        fold="savee",
    )
    assert run(settings) == 0
    assert "protocol cross-corpus, fold savee" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "spectro.json").read_text())
    assert (about["split"]["fold"], about["split"]["protocol"]) == ("savee", "cross-corpus")
    assert about["labels"] == ["calm", "happy", "angry"]
    assert about["metrics"]["test"]["clips"] == 4 * 2 * 2, "happy and angry; nobody taught it surprise"
    assert {name.partition("/")[0] for name in about["split"]["speakers"]["train"]} == {"synthetic"}
    assert checkpoints.load(tmp_path / "out").about.labels == ("calm", "happy", "angry")
    assert (settings.folder, replace(settings, out=None).folder.name[-6:]) == (tmp_path / "out", "-savee")


def test_metrics_of_several_corpora_are_means_over_the_corpora(world: World, savee: Path, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "out", note="The clips were made up.")
    trained = finetune(replace(settings, index=[world.images, savee]))
    card = (tmp_path / "out" / "card.md").read_text()
    assert "\n| SAVEE | research use, on registration | http" in card and "\nThe clips were made up.\n" in card
    figures = trained.about.metrics["test"]
    own = figures.corpora
    assert set(own) == {"savee", "synthetic"}
    assert figures.uar == pytest.approx(np.mean([one.uar for one in own.values()]), abs=1e-4)
    assert figures.clips == sum(one.clips for one in own.values())
    for images, corpus in ((world.images, "synthetic"), (savee, "savee")):
        report = evaluate(EvaluateSettings(checkpoint=tmp_path / "out", index=images, out=tmp_path / corpus, rounds=10))
        assert sum(report["labels"][label]["clips"] for label in trained.about.labels) == own[corpus].clips


def test_predictions_can_be_limited_to_the_labels_of_the_clips_corpus(
    world: World, savee: Path, tmp_path: Path
) -> None:
    for answers in ("any", "corpus"):
        out = tmp_path / answers
        settings = EvaluateSettings(
            checkpoint=world.checkpoint, index=savee, part="all", out=out, rounds=10, answers=answers
        )
        assert evaluate(settings).get("answers", "any") == answers
    every, limited = (pd.read_csv(tmp_path / answers / "predictions.csv") for answers in ("any", "corpus"))
    assert every["p_calm"].min() > 0 and limited["p_calm"].max() == 0
    np.testing.assert_allclose(limited["p_happy"] + limited["p_angry"], 1, atol=1e-4)
    np.testing.assert_allclose(limited["p_happy"] / limited["p_angry"], every["p_happy"] / every["p_angry"], rtol=1e-2)


def test_the_temperature_can_be_changed_without_retraining(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "out", train_on="valid", temperature=0.8)
    before, after = finetune(settings), finetune(replace(settings, temperature=1.2))
    assert (before.about.temperature, after.about.temperature) == (0.8, 1.2)
    pictures = torch.zeros(1, 1, SMALL.height, SMALL.width, dtype=torch.uint8)
    assert torch.equal(before.net(pictures), after.net(pictures))
    assert len(pd.read_csv(tmp_path / "out" / "curves.csv")) == 2


def test_invalid_settings_for_several_corpora_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"corpus_temperature is 2\.0"):
        finetune_settings(Path("a"), Path("b"), corpus_temperature=2.0)
    with pytest.raises(TrainingError, match="epoch_clips is -1"):
        finetune_settings(Path("a"), Path("b"), epoch_clips=-1)
    with pytest.raises(TrainingError, match="index names no rendering"):
        finetune_settings(Path("a"), Path("b"), index=[])


def test_a_single_channel_network_trains_reloads_and_starts_another_run(world: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    spec = replace(SPECS["mn04_as-16k"], width=64)
    render(RenderSettings(corpus="synthetic", source=world.corpus, out=images, spec=spec, workers=1))
    trained = finetune(
        finetune_settings(images, tmp_path / "out", backbone="mn04", conditions=ConditionSettings(probability=0.5))
    )
    again = checkpoints.load(tmp_path / "out")
    picture = torch.randint(0, 256, (1, 1, spec.height, spec.width), dtype=torch.uint8)
    assert torch.equal(trained.net(picture), again.net(picture)) and again.net.channels == 1
    started = finetune(
        finetune_settings(images, tmp_path / "more", backbone="mobilenet", weights=str(tmp_path / "out"))
    )
    assert started.about.backbone == "mn04", "a checkpoint says which of the MobileNets it is of"
    assert torch.equal(started.net.mean, trained.net.mean)
