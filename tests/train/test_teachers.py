"""Teachers: their probabilities in the targets, and what a run that has them depends on and says."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from spectro.errors import TrainingError
from spectro.files import read_json, write_json
from spectro.model.backbones import SpectrogramNet
from spectro.predict.predictor import Predictor
from spectro.rendering.index import INDEX
from spectro.rendering.render import RenderSettings, render
from spectro.train import teachers
from spectro.train.data import Balance, PictureDataModule
from spectro.train.finetune import finetune
from spectro.train.module import Classifier, TrainingSettings
from spectro.train.state import PlainStateIO
from tests.conftest import SMALL, World, finetune_settings, write_corpus

ONE_EPOCH = TrainingSettings(epochs=1)


def changed_index(images: Path, out: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Return a rendering with the same pictures and another index."""
    out.mkdir()
    (out / "images").symlink_to(images / "images")
    shutil.copy(images / "spec.json", out)
    change(pd.read_parquet(images / INDEX)).to_parquet(out / INDEX)
    return out


def changed_checkpoint(folder: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(folder, out)
    write_json(out / "spectro.json", read_json(out / "spectro.json") | changes)
    return out


def taught(data: PictureDataModule, share: float, *folders: Path) -> np.ndarray:
    answers = teachers.ask(folders, data, Path("no such folder"))
    data.learn_from(answers.probabilities, share)
    return data.shares()


def frequencies(rows: pd.DataFrame, labels: tuple[str, ...], least: int) -> np.ndarray:
    return np.array([max((rows["label"] == label).sum(), least) for label in labels])


@pytest.mark.parametrize("balance", ["none", "prior", "loss"])
def test_targets_mix_the_label_with_the_teachers_answer_to_the_untouched_clip(world: World, balance: Balance) -> None:
    data = PictureDataModule(world.images, batch_size=8, copies="all", balance=balance)
    rows, predictor = data.rows["train"], Predictor(world.checkpoint)
    found = taught(data, 0.7, world.checkpoint)
    untouched = rows[rows["copy"] == 0].set_index("clip_id")["image"]
    factor = {"none": 1, "prior": frequencies(rows, data.labels, 1), "loss": frequencies(rows, data.labels, 0)}[balance]
    assert set(rows["copy"]) == {0, 1, 2}
    for own, row in zip(found, rows.itertuples(), strict=True):
        answered = predictor.predict_image(untouched[row.clip_id]).probabilities
        expected = np.array([answered[label] for label in data.labels]) * factor
        expected *= 0.7 / expected.sum()
        expected[row.target] += 0.3
        assert own == pytest.approx(expected, abs=1e-5)
    _pictures, targets, _groups = next(iter(data.train_dataloader()))
    assert targets.shape == (8, len(data.labels)) and targets.dtype == torch.float32


@pytest.mark.parametrize("balance", ["none", "prior", "loss"])
def test_the_loss_is_smallest_where_the_logits_are_the_teachers(world: World, balance: Balance) -> None:
    data = PictureDataModule(world.images, batch_size=8, balance=balance, train_on="all")
    rows = data.rows["train"]
    data.rows["train"] = rows.drop(rows[rows["label"] == "angry"].index[5:]).reset_index(drop=True)  # unequal labels
    settings = TrainingSettings(label_smoothing=0.0, mixup=0.0)
    net = SpectrogramNet("test_efficientnet", len(data.labels))
    model = Classifier(net, settings, class_weights=data.class_weights(), prior=data.prior())
    answers = teachers.ask([world.checkpoint], data, Path("none")).probabilities
    targets = torch.from_numpy(taught(data, 1.0, world.checkpoint))
    of_rows = pd.DataFrame(answers, index=data.untouched["clip_id"]).loc[data.rows["train"]["clip_id"]].to_numpy()
    if balance == "loss":  # which cannot train labels without clips
        of_rows = np.where(frequencies(data.rows["train"], data.labels, 0), of_rows, 1e-30)
    logits = torch.from_numpy(np.log(of_rows)).requires_grad_()
    model.loss(logits, targets).backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6
    worse = (logits.detach() + 0.1 * torch.randn(logits.shape)).requires_grad_()
    model.loss(worse, targets).backward()
    assert worse.grad is not None and float(worse.grad.abs().max()) > 1e-5


def test_teachers_do_not_change_the_prior(world: World) -> None:
    data = PictureDataModule(world.images, batch_size=8, balance="prior")
    before = data.prior()
    taught(data, 1.0, world.checkpoint)
    after = data.prior()
    assert before is not None and after is not None and torch.equal(before, after)


def test_a_teacher_of_another_spec_is_shown_the_recording(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, spec = write_corpus(tmp_path / "corpus"), replace(SMALL, width=60, fmax=6000.0)
    render(RenderSettings(corpus="synthetic", source=corpus, out=tmp_path / "images", spec=spec, workers=1))
    data = PictureDataModule(tmp_path / "images", batch_size=8)
    lost = Path(data.untouched["path"][3])
    lost.unlink()
    found, predictor = taught(data, 1.0, world.checkpoint), Predictor(world.checkpoint)
    assert f"1 of {len(found)} training clips keep their label alone" in capsys.readouterr().err
    for own, row in zip(found, data.rows["train"].itertuples(), strict=True):
        if row.path == str(lost):
            assert own.tolist() == np.eye(len(data.labels))[row.target].tolist()
            continue
        answered = predictor.predict_wav(row.path).probabilities
        assert own == pytest.approx([answered[label] for label in data.labels], abs=1e-5)


def test_answers_are_not_reused_once_lost_recordings_are_back(world: World, tmp_path: Path) -> None:
    corpus, spec = write_corpus(tmp_path / "corpus"), replace(SMALL, width=60)
    render(RenderSettings(corpus="synthetic", source=corpus, out=tmp_path / "images", spec=spec, workers=1))
    data = PictureDataModule(tmp_path / "images", batch_size=8)
    away = corpus.rename(tmp_path / "away")
    with pytest.raises(
        TrainingError, match=r"checkpoint: cannot teach, because none of the \d+ recordings can be read"
    ):
        teachers.ask([world.checkpoint], data, tmp_path)
    away.rename(corpus)
    lost = Path(data.untouched["path"][3])
    content = lost.read_bytes()
    lost.unlink()
    partial = teachers.ask([world.checkpoint], data, tmp_path)
    partial.keep(tmp_path)
    lost.write_bytes(content)
    assert partial.probabilities.any(axis=1).sum() == len(data.untouched) - 1
    assert teachers.ask([world.checkpoint], data, tmp_path).probabilities.any(axis=1).all()
    again = teachers.ask([world.checkpoint], data, tmp_path, resumed=True)
    assert np.array_equal(again.probabilities, partial.probabilities) and again.key == partial.key


def test_answers_are_mapped_by_name_limited_to_the_corpus_and_averaged_over_the_teachers_that_know_the_label(
    world: World, tmp_path: Path
) -> None:
    """Half of the speakers are a corpus of their own, which is bored instead of happy; one teacher knows boredom."""

    def halved(index: pd.DataFrame) -> pd.DataFrame:
        own = index["speaker"].astype(int) > 4
        index["corpus"] = index["corpus"].where(~own, "folder")
        return index.assign(emotion=index["emotion"].where(~own | (index["emotion"] != "happy"), "bored"))

    labels = ["bored" if label == "neutral" else label for label in Predictor(world.checkpoint).labels]
    other = changed_checkpoint(world.checkpoint, tmp_path / "other", labels=labels, temperature=0.5)
    data = PictureDataModule(changed_index(world.images, tmp_path / "images", halved), batch_size=8, train_on="all")
    found = taught(data, 1.0, world.checkpoint, other)
    possible = {"synthetic": {"angry", "calm", "happy"}, "folder": {"angry", "calm", "bored"}}
    assert set(data.rows["train"]["corpus"]) == set(possible)
    asked = [Predictor(folder) for folder in (world.checkpoint, other)]
    for own, row in zip(found, data.rows["train"].itertuples(), strict=True):
        expected, able = np.zeros(len(data.labels)), [one for one in asked if row.label in one.labels]
        assert len(able) == (1 if row.label == "bored" else 2)
        for one in able:
            answered = one.predict_image(row.image).probabilities
            limited = [answered.get(label, 0.0) if label in possible[row.corpus] else 0.0 for label in data.labels]
            expected += np.array(limited) / sum(limited) / len(able)
        assert own == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_run_resumes_to_equal_weights_without_asking_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    class Cut(Exception):
        pass

    def cut(self: PlainStateIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if checkpoint["epoch"] == epoch:
            raise Cut
        original(self, checkpoint, path, storage_options)

    def refuse(*_given: object) -> None:
        pytest.fail("a teacher is asked again")

    changes: dict[str, Any] = {"teachers": [world.checkpoint], "balance": "prior"}
    original = PlainStateIO.save_checkpoint
    finetune(finetune_settings(world.images, tmp_path / "whole", **changes))
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(PlainStateIO, "save_checkpoint", cut)
        finetune(finetune_settings(world.images, tmp_path / "cut", **changes))
    kept = tmp_path / "cut" / "training" / teachers.FILE
    before = kept.read_bytes()
    monkeypatch.setattr(teachers, "_answers", refuse)
    finetune(finetune_settings(world.images, tmp_path / "cut", **changes))
    assert kept.read_bytes() == before
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_kept_answers_of_other_clips_or_teachers_and_damaged_ones_are_not_used(world: World, tmp_path: Path) -> None:
    data = PictureDataModule(world.images, batch_size=8)
    teachers.ask([world.checkpoint], data, tmp_path).keep(tmp_path)
    kept = (tmp_path / teachers.FILE).read_bytes()
    colder = changed_checkpoint(world.checkpoint, tmp_path / "colder", temperature=0.2)
    found = teachers.ask([colder], data, tmp_path).probabilities
    assert found == pytest.approx(teachers.ask([colder], data, tmp_path / "nothing").probabilities)
    other = PictureDataModule(world.images, batch_size=8, fold=1)
    assert len(teachers.ask([world.checkpoint], other, tmp_path).probabilities) == len(other.untouched)
    expected = teachers.ask([world.checkpoint], data, tmp_path).probabilities
    for content in (b"", b"text", kept[: len(kept) // 2]):
        (tmp_path / teachers.FILE).write_bytes(content)
        assert np.array_equal(teachers.ask([world.checkpoint], data, tmp_path).probabilities, expected)


def test_the_training_changes_with_the_teachers_and_the_checkpoint_names_them(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "run", teachers=[world.checkpoint], teacher_share=0.6)
    about = finetune(settings).about
    digest = "model.safetensors sha256:"
    name = f"{world.checkpoint.parent.name}/checkpoint"
    assert about.teachers[0].startswith(f"{name} ({digest}") and about.teacher_share == 0.6
    assert about.training is not None
    assert about.training.settings["teachers"][0].startswith(digest)
    assert about.training.settings["teacher_share"] == 0.6
    card = (tmp_path / "run" / "card.md").read_text()
    assert f"weight of 0.6 in the targets: {name} (model.safetensors" in card
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "run", world.checkpoint)]
    assert not all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "teachers" not in read_json(world.checkpoint / "spectro.json")
    assert "Teachers" not in (world.checkpoint / "card.md").read_text()
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(replace(settings, teacher_share=0.5))


def test_a_teacher_that_heard_the_test_speakers_marks_the_figures_as_leaky(world: World, tmp_path: Path) -> None:
    heard = changed_checkpoint(world.checkpoint, tmp_path / "teacher", heard_before=["ravdess/7"])
    settings = finetune_settings(world.images, tmp_path / "same", teachers=[heard], train=ONE_EPOCH)
    same = finetune(settings).about
    assert same.split is not None and same.split.leak == ""
    other = finetune(replace(settings, out=tmp_path / "other", fold=1)).about
    before = world.trained.about.split
    assert other.split is not None and before is not None
    known = set(other.split.speakers["test"]) - set(before.speakers["test"])
    told = f"the teachers were trained on the test speakers {', '.join(sorted(known, key=int))}"
    assert known and other.split.leak == told
    assert f"**These figures leak:** {told}" in (tmp_path / "other" / "card.md").read_text()
    trained = {f"synthetic/{name}" for part in ("train", "valid") for name in before.speakers[part]}
    assert set(other.heard_before) == trained | {"ravdess/7"}


def test_checkpoints_that_cannot_teach_are_refused(world: World, tmp_path: Path) -> None:
    def refused(message: str, teacher: Path, **changes: Any) -> None:
        with pytest.raises(TrainingError, match=message):
            finetune(finetune_settings(world.images, tmp_path / "run", teachers=[teacher], **changes))

    refused("holds no checkpoint that can teach", tmp_path)
    refused("holds no checkpoint that can teach", tmp_path / "missing")
    refused(
        "its label scheme is 'emotion', that of this run gender; .*other --labels", world.checkpoint, labels="gender"
    )
    few = changed_checkpoint(world.checkpoint, tmp_path / "strange", labels=["a", "b", "c", "happy", "e", "f"])
    refused("has 1 of the labels of synthetic, and a teacher needs two", few)
    own = changed_checkpoint(world.checkpoint, tmp_path / "own")
    with pytest.raises(TrainingError, match="is an input, and would be overwritten"):
        finetune(finetune_settings(world.images, own, teachers=[own], overwrite=True))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_outside_their_range_are_refused(share: float) -> None:
    with pytest.raises(TrainingError, match=rf"teacher_share is {share}; it must lie between 0 and 1"):
        finetune_settings(Path("a"), Path("b"), teacher_share=share)


def test_teachers_without_weight_are_refused() -> None:
    with pytest.raises(TrainingError, match="teacher_share is 0, so the teachers have no effect"):
        finetune_settings(Path("a"), Path("b"), teachers=[Path("c")], teacher_share=0.0)
