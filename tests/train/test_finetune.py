import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, recall_score

from spectro.engines.base import batch
from spectro.errors import CheckpointError, EvaluationError, SplitError, TrainingError, WeightsError
from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.files import held, read_json
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import Plan, SpectrogramNet
from spectro.model.checkpoint import Checkpoint
from spectro.picture import png
from spectro.rendering.index import read_index
from spectro.rendering.render import RenderSettings, render
from spectro.train.finetune import finetune
from spectro.train.finish import estimate, fit_temperature, measure
from spectro.train.module import Classifier, TrainingSettings
from spectro.train.state import read_state
from spectro.verbs.finetune import run
from tests import processes
from tests.conftest import SMALL, World, finetune_settings, write_corpus


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _equal(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_describes_its_data_split_metrics_and_versions(world: World) -> None:
    description = json.loads((world.checkpoint / "spectro.json").read_text())
    assert description["backbone"] == "test_efficientnet"
    assert description["labels"] == ["neutral", "calm", "happy", "sad", "angry", "fearful"]
    assert description["weights"] == "random initialisation"
    split = description["split"]
    assert (split["protocol"], split["fold"], split["folds"], split["leak"]) == ("group-kfold", 0, 5, "")
    assert sum(len(names) for names in split["speakers"].values()) == 8
    assert set(description["metrics"]) == {"valid", "test"}
    assert description["metrics"]["test"]["clips"] == 6 * len(split["speakers"]["test"])
    assert description["versions"]["torch"] == version("torch")
    assert description["data"]["licence"].startswith("Apache-2.0")
    card = (world.checkpoint / "card.md").read_text()
    for part in ("group-kfold", "Licence of the recordings: Apache-2.0", "Do not use it for decisions about people"):
        assert part in card


def test_the_features_of_the_training_clips_are_in_the_checkpoint(world: World) -> None:
    net, split = checkpoints.load(world.checkpoint).net, world.trained.about.split
    index, _spec = read_index(world.images)
    heard = index[(index["copy"] == 0) & index["speaker"].isin(split.speakers["train"])]
    shown = torch.from_numpy(batch([png.read(world.images / name).pixels for name in heard["image"]]))
    with torch.inference_mode():
        features = net.backbone((shown - net.mean) / net.std)
        torch.testing.assert_close(net.feature_norm.shift, features.mean(0), atol=1e-4, rtol=1e-3)
        ratio = net.feature_norm.scale / (features.var(0) + net.feature_norm.eps).sqrt()
        assert float(ratio.mean()) == pytest.approx(1, abs=0.1), "the mean of the batches' variances"
        torch.testing.assert_close(net.embed(shown), features, atol=1e-4, rtol=1e-3)


def test_the_kept_epoch_is_the_best_on_validation_speakers(world: World) -> None:
    curves = pd.read_csv(world.checkpoint / "curves.csv")
    chosen = world.trained.about.training.epoch
    assert len(curves) == 2
    assert curves["valid_uar"][chosen] == curves["valid_uar"].max()
    assert (world.checkpoint / "curves.png").stat().st_size > 5_000
    assert list((world.checkpoint / "training").glob("events.out.tfevents.*"))


def test_equal_settings_give_equal_weights_and_another_seed_different_weights(world: World, tmp_path: Path) -> None:
    finetune(finetune_settings(world.images, tmp_path / "again"))
    assert _equal(tmp_path / "again", world.checkpoint)
    finetune(finetune_settings(world.images, tmp_path / "other", seed=1))
    assert not _equal(tmp_path / "other", world.checkpoint)


@pytest.mark.parametrize(("ema", "workers"), [(0.9, 0), (0.0, 1)])
def test_a_killed_run_resumes_to_the_same_result(world: World, tmp_path: Path, ema: float, workers: int) -> None:
    """The process is killed with SIGKILL after its first epoch."""
    train = TrainingSettings(epochs=4)
    settings = finetune_settings(world.images, tmp_path / "whole", ema=ema, train=train)
    finetune(settings)
    out, log = tmp_path / "killed", tmp_path / "log"
    arguments = [
        *("finetune", "--index", str(world.images), "--out", str(out)),
        *("--backbone", "test_efficientnet", "--weights", "none", "--batch_size", "8", "--train.epochs", "4"),
        *("--precision", "32-true", "--workers", str(workers), "--accelerator", "cpu", "--ema", str(ema)),
    ]
    processes.killed(arguments, log, processes.has_files(out / "training", "last.ckpt"))
    assert not (out / "model.safetensors").exists()
    said = processes.spectro(arguments, log)
    assert "epoch 1/4" not in said
    assert "epoch 4/4" in said
    assert _equal(out, tmp_path / "whole")
    whole, killed = (pd.read_csv(folder / "curves.csv") for folder in (tmp_path / "whole", out))
    pd.testing.assert_frame_equal(killed.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_a_folder_with_another_run_is_refused_without_overwrite(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(finetune_settings(world.images, out))
    with pytest.raises(TrainingError, match=r"holds a run with other settings.*--overwrite true"):
        finetune(finetune_settings(world.images, out, seed=5))
    finetune(finetune_settings(world.images, out, seed=5, overwrite=True))
    assert json.loads((out / "spectro.json").read_text())["training"]["seed"] == 5


def test_training_stops_when_validation_no_longer_improves(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(
        world.images, tmp_path / "run", patience=1, train=TrainingSettings(epochs=30, learning_rate=1e-9)
    )
    finetune(settings)
    assert len(pd.read_csv(tmp_path / "run" / "curves.csv")) < 8


@pytest.mark.parametrize("plan", ["head", "last-block", "gradual", "all"])
def test_layers_frozen_by_a_plan_keep_their_weights(world: World, tmp_path: Path, plan: Plan) -> None:
    train = TrainingSettings(epochs=1, plan=plan)
    finetune(finetune_settings(world.images, tmp_path / "run", train=train, hidden=8))
    after = _weights(tmp_path / "run")
    pl.seed_everything(0, verbose=False)
    before = SpectrogramNet("test_efficientnet", 6, hidden=8).state_dict()  # the starting weights of a run with seed 0
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "head.1.weight" in moved
    first = {"backbone.conv_stem.weight", "backbone.bn1.running_mean"}
    assert moved & first == (first if plan == "all" else set())


def test_learning_rates_decrease_towards_the_input() -> None:
    net = SpectrogramNet("test_efficientnet", 4)
    model = Classifier(net, TrainingSettings(layer_decay=0.5, learning_rate=0.01))
    data = type("Data", (), {"batches_per_epoch": 10})()
    model.trainer = type("Trainer", (), {"datamodule": data})()  # type: ignore[assignment]
    groups = model.configure_optimizers()["optimizer"].param_groups
    rates = {id(parameter): group["max_lr"] for group in groups for parameter in group["params"]}
    assert rates[id(net.head[1].weight)] == pytest.approx(0.01)
    ordered = [rates[id(parameter)] for parameter in net.backbone.parameters()]
    assert min(ordered) == rates[id(net.backbone.conv_stem.weight)] < 0.01 / 4
    assert len(rates) == len(list(net.parameters()))


def test_metrics_match_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 5, generator=generator)
    targets = torch.randint(0, 5, (200,), generator=generator)
    found, predicted = measure(logits, targets), logits.argmax(1)
    assert found.wa == pytest.approx(accuracy_score(targets, predicted), abs=1e-4)
    assert found.uar == pytest.approx(recall_score(targets, predicted, average="macro"), abs=1e-4)
    assert found.f1 == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-4)


def test_the_fitted_temperature_recovers_the_scale_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(4)
    calibrated = 2 * torch.randn(20_000, 4, generator=generator)
    targets = torch.multinomial(calibrated.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.5, 1.0, 3.0):
        assert fit_temperature(factor * calibrated, targets) == pytest.approx(factor, rel=0.05)


def test_a_checkpoint_survives_saving_and_loading_in_both_dtypes(world: World, tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (3, 1, 40, 80), dtype=torch.uint8)
    for dtype, tolerance in (("float32", 0.0), ("float16", 0.1)):
        checkpoints.save(world.trained, tmp_path / dtype, dtype=dtype)  # type: ignore[arg-type]
        loaded = checkpoints.load(tmp_path / dtype)
        assert (loaded.about.labels, loaded.about.spec, loaded.about.temperature) == (
            world.trained.about.labels,
            SMALL,
            world.trained.about.temperature,
        )
        with torch.inference_mode():
            torch.testing.assert_close(loaded.net(pictures), world.trained.net(pictures), atol=tolerance, rtol=1e-5)
    sizes = [(tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("float16", "float32")]
    assert sizes[0] < 0.55 * sizes[1]
    modes = {path.stat().st_mode for path in (tmp_path / "float32").iterdir()}
    assert len(modes) == 1, "who may read the description may read the weights"


def test_the_number_of_labels_must_equal_the_number_of_outputs(world: World) -> None:
    with pytest.raises(CheckpointError, match="2 labels are given for a network with 6 outputs"):
        Checkpoint.of(net=world.trained.net, labels=("a", "b"), spec=SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b"]}, "do not fit together"),
        ({"backbone": "test_vit"}, "do not fit|tensors are missing"),
        ({"backbone": "nope"}, "there is no backbone 'nope'"),
        ({"spec": {"height": 0}}, "height is 0"),
        ({"format": 99}, "not a checkpoint of format 1"),
        ({"temperature": "warm"}, "do not fit together|could not convert"),
        ({"temperature": -0.95}, "temperature: Expected 'float' >= 0.001"),
    ],
)
def test_a_checkpoint_with_an_inconsistent_description_is_refused(
    world: World, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    checkpoints.save(world.trained, tmp_path)
    description = json.loads((tmp_path / "spectro.json").read_text()) | change
    (tmp_path / "spectro.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path)


def test_a_missing_or_damaged_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint .*scripts/finetune\.py"):
        checkpoints.load(tmp_path)
    checkpoints.save(world.trained, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(tmp_path)


def test_a_run_with_another_copies_setting_is_not_resumed(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "run")
    finetune(settings)
    with pytest.raises(TrainingError, match="other settings"):
        finetune(replace(settings, copies="all"))


def test_finetune_returns_the_weights_as_saved_in_float16(world: World, tmp_path: Path) -> None:
    made = finetune(finetune_settings(world.images, tmp_path / "run", dtype="float16"))
    loaded = checkpoints.load(tmp_path / "run")
    for name, value in loaded.net.state_dict().items():
        assert torch.equal(value, made.net.state_dict()[name]), name


def test_a_run_that_fails_on_missing_weights_does_not_block_the_next_run(world: World, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        finetune(finetune_settings(world.images, tmp_path / "run", weights=str(tmp_path / "gone.pth")))
    finetune(finetune_settings(world.images, tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"hidden": -1}, "hidden is -1"),
        ({"ema": 1.5}, "ema is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 5_000_000_000}, "seed is 5000000000"),
        ({"estimate_of": "mobilenet"}, "give the table"),
        ({"precision": "bf17"}, "precision"),
        ({"accelerator": "abacus"}, "accelerator"),
    ],
)
def test_invalid_settings_are_refused_before_the_folder_is_created(
    world: World, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        finetune(finetune_settings(world.images, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_rerunning_an_early_stopped_run_does_not_train_further(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(
        world.images, tmp_path / "run", patience=1, train=TrainingSettings(epochs=30, learning_rate=1e-9)
    )
    finetune(settings)
    before, curves = _weights(tmp_path / "run"), (tmp_path / "run" / "curves.csv").read_text()
    finetune(settings)
    assert (tmp_path / "run" / "curves.csv").read_text() == curves
    assert all(torch.equal(value, before[name]) for name, value in _weights(tmp_path / "run").items())


def test_a_run_with_changed_speakers_in_the_index_is_not_resumed(world: World, tmp_path: Path) -> None:
    """After the index has changed, a run must not be resumed and evaluated as if on new speakers."""
    finetune(finetune_settings(world.images, tmp_path / "run"))
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "images").symlink_to(world.images / "images")
    (changed / "spec.json").write_bytes((world.images / "spec.json").read_bytes())
    index = pd.read_parquet(world.images / "index.parquet")
    index["speaker"] = index["speaker"].map({str(n): str(n % 8 + 1) for n in range(1, 9)})
    index.to_parquet(changed / "index.parquet")
    with pytest.raises(TrainingError, match="other settings"):
        finetune(finetune_settings(changed, tmp_path / "run"))


def test_starting_weights_trained_on_test_speakers_are_reported_as_a_leak(world: World, tmp_path: Path) -> None:
    again = finetune(finetune_settings(world.images, tmp_path / "same", weights=str(world.checkpoint)))
    assert again.about.split.leak == ""
    other = finetune(finetune_settings(world.images, tmp_path / "other", weights=str(world.checkpoint), fold=1))
    trained_on = set(other.about.split.speakers["test"]) - set(world.trained.about.split.speakers["test"])
    assert trained_on
    assert other.about.split.leak.endswith(", ".join(sorted(trained_on, key=int)))
    assert "These figures leak" in (tmp_path / "other" / "card.md").read_text()
    assert {f"synthetic/{name}" for name in trained_on} < set(other.about.heard_before)
    file = finetune_settings(
        world.images, tmp_path / "file", weights=str(tmp_path / "other" / "model.safetensors"), protocol="random-leaky"
    )
    leak = finetune(file).about.split.leak
    assert "shared between training and test" in leak and "the starting weights were trained" in leak


def test_a_moved_run_resumes_with_its_own_best_epoch(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.checkpoint, tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "moved")
    (tmp_path / "moved" / "model.safetensors").unlink()
    finetune(finetune_settings(world.images, tmp_path / "moved"))
    assert _equal(tmp_path / "moved", world.checkpoint)
    state = read_state(tmp_path / "moved" / "training" / "last.ckpt")
    kept = [one for one in state["callbacks"].values() if "best_model_path" in one]
    assert len(kept) == 2
    for one in kept:
        assert {Path(one["dirpath"]), Path(one["best_model_path"]).parent} == {tmp_path / "moved" / "training"}


def test_two_runs_cannot_write_to_the_same_folder(world: World, tmp_path: Path) -> None:
    with held(tmp_path / "run" / ".lock"), pytest.raises(TrainingError, match="another run writes there"):
        finetune(finetune_settings(world.images, tmp_path / "run"))


def test_a_run_folder_is_locked_before_it_is_inspected(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(out: Path, *_: object) -> None:
        with held(out / ".lock") as free:
            raise KeyError("free" if free else "locked")

    monkeypatch.setattr("spectro.train.finetune._find_run", look)
    with pytest.raises(KeyError, match="locked"):
        finetune(finetune_settings(world.images, tmp_path / "run"))


def test_a_run_does_not_overwrite_its_starting_weights(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(world.checkpoint, out)
    before = (out / "model.safetensors").read_bytes()
    for weights in (out, out / "model.safetensors"):
        with pytest.raises(TrainingError, match="is an input, and would be overwritten"):
            finetune(finetune_settings(world.images, out, weights=str(weights), overwrite=True))
    assert (out / "model.safetensors").read_bytes() == before
    assert (out / "training" / "last.ckpt").exists()


def test_an_out_of_memory_error_is_not_reported_as_a_damaged_state(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    shutil.copytree(world.checkpoint, tmp_path / "run")
    monkeypatch.setattr(pl.Trainer, "fit", fit)
    with pytest.raises(torch.OutOfMemoryError):
        finetune(finetune_settings(world.images, tmp_path / "run"))


def test_rerunning_a_finished_run_with_frozen_layers_keeps_its_weights(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "run", train=TrainingSettings(epochs=1, plan="head"))
    finetune(settings)
    before = _weights(tmp_path / "run")
    finetune(settings)
    assert all(torch.equal(value, before[name]) for name, value in _weights(tmp_path / "run").items())


def test_train_on_valid_also_trains_on_validation_speakers(world: World, tmp_path: Path) -> None:
    trained = finetune(finetune_settings(world.images, tmp_path / "run", train_on="valid", temperature=0.8))
    before, after = world.trained.about.split.speakers, trained.about.split.speakers
    assert set(after["train"]) == {*before["train"], *before["valid"]}
    assert (after["valid"], after["test"]) == ((), before["test"])
    assert (list(trained.about.metrics), trained.about.temperature) == (["test"], 0.8)
    assert trained.about.training.epoch == 1, "the last one"
    assert trained.about.data.training_pictures == 6 * len(after["train"])
    assert "no speakers were held out to choose it" in (tmp_path / "run" / "card.md").read_text()
    with pytest.raises(TrainingError, match="leaves no speakers for validation"):
        finetune_settings(world.images, tmp_path / "other", train_on="valid", valid_speakers=[1])


def test_the_valid_speakers_setting_chooses_the_validation_speakers(world: World, tmp_path: Path) -> None:
    before = world.trained.about.split.speakers
    chosen = [int(before["train"][0]), before["train"][1], before["valid"][0]]
    settings = finetune_settings(world.images, tmp_path / "run", valid_speakers=chosen)
    trained = finetune(settings)
    found = trained.about.split.speakers
    assert set(found["valid"]) == {str(name) for name in chosen}
    assert set(found["train"]) == {*before["train"], *before["valid"]} - set(found["valid"])
    assert found["test"] == before["test"]
    assert trained.about.metrics["valid"].clips == 18
    known = read_json(tmp_path / "run" / "training" / "settings.json")
    assert known["valid_speakers"] == sorted(map(str, chosen))
    for name, problem in ((before["test"][0], "fold 0 tests"), ("nobody", "no clip is of validation speaker")):
        with pytest.raises(SplitError, match=f"{problem} {name}"):
            finetune(replace(settings, valid_speakers=[name], out=tmp_path / "other"))
    with pytest.raises(SplitError, match="validation speakers cannot be chosen"):
        finetune(replace(settings, protocol="random-leaky", out=tmp_path / "other"))


def test_train_on_all_trains_on_every_speaker_and_reports_an_estimate(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"protocol": p, "fold": fold, "seed": seed, "test_uar": uar, "config": p, "transductive": transductive}
        for p, fold, seed, uar, transductive in (
            ("loso", 0, 0, 0.5, False),
            ("loso", 1, 0, 0.6, False),
            ("loso", 0, 1, 0.7, False),
            ("loso", 1, 1, 0.6, False),
            ("loso", 0, 0, 0.9, True),
            ("random-leaky", 0, 0, 0.99, False),
            ("cross-corpus", "tess", 0, 0.4, False),
            ("cross-corpus", "savee", 0, 0.3, False),
            ("cross-corpus", "savee", 1, 0.5, False),
        )
    ]
    table = pd.DataFrame(rows).assign(system="tiny", corpus="synthetic", labels="emotion")
    table.to_csv(tmp_path / "study.csv", index=False)
    told = {"estimate": tmp_path / "study.csv", "estimate_of": "tiny"}
    settings = finetune_settings(world.images, tmp_path / "run", train_on="all", protocol="luna-jimenez", **told)
    assert run(settings) == 0
    assert "this checkpoint cannot be measured on these speakers" in capsys.readouterr().out
    origin = checkpoints.load(tmp_path / "run").about
    assert origin.split is not None
    assert (len(origin.split.speakers["train"]), origin.split.speakers["valid"], origin.metrics) == (8, (), {})
    card = (tmp_path / "run" / "card.md").read_text()
    assert "All 8 speakers were trained on" in card
    assert "All speakers were trained on" in card and "figures of `tiny` in study.csv" in card
    assert "| loso | 2 | 2 | 4 | 0.600 | 0.500, 0.700 |" in card
    assert "| corpus | UAR |\n| --- | --- |\n| savee | 0.400 |\n| tess | 0.400 |" in card
    with pytest.raises(EvaluationError, match="was also trained on the test speakers"):
        evaluate(EvaluateSettings(checkpoint=tmp_path / "run", index=world.images, out=tmp_path / "report"))
    table.loc[0, "config"] = "another"
    table.to_csv(tmp_path / "study.csv", index=False)
    with pytest.raises(TrainingError, match="several configurations of tiny under loso"):
        finetune(settings)
    with pytest.raises(
        TrainingError, match="no test figures of 'huge' on synthetic for emotion; it has those of: tiny"
    ):
        estimate(tmp_path / "study.csv", "huge", "synthetic", "emotion")
    with pytest.raises(TrainingError, match="is not a table of a study"):
        estimate(world.images / "spec.json", "tiny", "synthetic", "emotion")


def test_a_leaky_run_trained_on_validation_clips_is_not_evaluated_on_them(world: World, tmp_path: Path) -> None:
    finetune(finetune_settings(world.images, tmp_path / "run", train_on="valid", protocol="random-leaky"))
    with pytest.raises(EvaluationError, match="was also trained on the valid speakers"):
        evaluate(EvaluateSettings(checkpoint=tmp_path / "run", index=world.images, out=tmp_path / "r", part="valid"))


def test_default_train_on_is_not_stored_and_another_value_is_refused(world: World, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "run")
    finetune(settings)
    known = read_json(tmp_path / "run" / "training" / "settings.json")
    assert not {"train_on", "temperature", "estimate", "estimate_of", "valid_speakers"} & set(known)
    other = finetune_settings(world.images, tmp_path / "run", train_on="valid")
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(other)


def test_a_folder_with_foreign_weights_is_not_overwritten(world: World, tmp_path: Path) -> None:
    out = tmp_path / "downloaded"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"another's")
    for overwrite in (False, True):
        with pytest.raises(TrainingError, match=r"model\.safetensors: already exists, and spectro did not make it"):
            finetune(finetune_settings(world.images, out, overwrite=overwrite))
    assert (out / "model.safetensors").read_bytes() == b"another's"


def test_a_run_on_recordings_that_have_changed_is_another_run(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    settings = finetune_settings(tmp_path / "images", out, train=TrainingSettings(epochs=1))

    def trained() -> bytes:
        render(RenderSettings(corpus="synthetic", source=corpus, out=settings.index, spec=SMALL, workers=1))
        finetune(settings)
        return (out / "model.safetensors").read_bytes()

    assert trained() == trained()
    first, second = sorted(corpus.rglob("*.wav"))[:2]
    first.write_bytes(second.read_bytes()[:-200])
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        trained()
