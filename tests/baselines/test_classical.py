import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as reference
from sklearn.model_selection import GridSearchCV
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

from spectro.baselines import classical as module
from spectro.baselines.classical import CLASSIFIERS, ClassicalSettings, Name, Table, _parameters, classical, fit
from spectro.baselines.features import FOLDER, FeatureSettings
from spectro.baselines.results import Clips
from spectro.cli import run_verb
from spectro.errors import FeatureError, TrainingError
from spectro.files import read_json
from spectro.model.metadata import Result
from spectro.schema import typed
from tests.conftest import World

FEW = FeatureSettings(parts=("mfcc", "rms"), mfcc=13)
LABELS = ("calm", "happy", "angry")


def _table(speakers: int = 10, copies: int = 1, seed: int = 0) -> Table:
    """Return clips whose features encode the label, with noise, and the speaker."""
    generator = np.random.default_rng(seed)
    rows = [
        {"clip_id": f"{speaker}-{emotion}-{take}", "copy": copy, "speaker": str(speaker), "emotion": emotion}
        for speaker in range(speakers)
        for emotion in LABELS
        for take in range(4)
        for copy in range(copies + 1)
    ]
    frame = pd.DataFrame(rows).assign(corpus="synthetic", gender="female", path="", language="en")
    clips = Clips.of(frame, "emotion", "group-kfold", 0)
    targets = clips.rows["target"].to_numpy()
    values = generator.normal(size=(len(targets), 8))
    values[:, 0] += 2.0 * targets
    values[:, 1] += clips.rows["speaker"].astype(int)
    return Table(clips, values.astype(np.float32))


def _settings(**changes: Any) -> ClassicalSettings:
    return ClassicalSettings(**({"inner_folds": 3, "workers": 1, "classifier": "logistic"} | changes))


@pytest.mark.parametrize("name", get_args(Name))
def test_every_classifier_learns_from_informative_features(name: str) -> None:
    if name == "xgboost":
        pytest.importorskip("xgboost")
    table = _table()
    fitted = fit(table, _settings(classifier=name, inner_folds=0))
    test = table.clips.part("test")
    right = fitted.predict(table.values[test]) == table.clips.rows["target"].to_numpy()[test]
    assert right.mean() > 0.6
    assert set(fitted.chosen) == set(CLASSIFIERS[name][1])
    weights = {"logistic": 3 * 9, "svm-linear": 3 * 9, "mlp": 8 * 128 + 128 + 128 * 3 + 3}
    assert _parameters(fitted.model) == weights.get(name)


def test_held_out_speakers_do_not_influence_selection_or_fit() -> None:
    table, settings = _table(), _settings(classifier="svm-rbf")
    altered = table.values.copy()
    held_out = np.concatenate([table.clips.part("valid"), table.clips.part("test")])
    altered[held_out] = 1e3
    one, other = fit(table, settings), fit(Table(table.clips, altered), settings)
    assert one.chosen == other.chosen
    np.testing.assert_array_equal(one.predict(table.values), other.predict(table.values))


def test_inner_folds_separate_speakers_and_exclude_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    table, seen = _table(copies=2), []

    class Watched(GridSearchCV):
        def fit(self, values: Any, targets: Any, *, groups: Any) -> Any:
            seen.append((values, groups, list(self.cv.split(values, targets, groups))))
            return super().fit(values, targets, groups=groups)

    monkeypatch.setattr(module, "GridSearchCV", Watched)
    fit(table, _settings(copies="all"))
    ((values, groups, folds),) = seen
    assert set(groups) == set(table.clips.split.speakers["train"])
    for rest, held_out in folds:
        assert not set(groups[rest]) & set(groups[held_out])
    np.testing.assert_array_equal(values, table.values[table.clips.part("train")])


def test_copies_are_trained_on_only_if_requested() -> None:
    table = _table(copies=2)
    counts = [fit(table, _settings(copies=copies)).model[0].n_samples_seen_ for copies in ("none", "all")]
    assert counts == [len(table.clips.part("train")), 3 * len(table.clips.part("train"))]


def test_metrics_match_scikit_learn_and_torchmetrics(world: World, tmp_path: Path) -> None:
    settings = _settings(index=world.images, out=tmp_path / "run", features=FEW, inner_folds=2)
    run = classical(settings)
    assert run == typed(read_json(tmp_path / "run" / "run.json"), Result)
    assert run.data.scheme == "emotion" and run.parameters
    for part in ("valid", "test"):
        table = pd.read_csv(tmp_path / "run" / f"evaluation-{part}" / "predictions.csv", dtype={"speaker": str})
        assert set(table["speaker"]) == set(run.split.speakers[part])
        true, predicted = table["label"], table["predicted"]
        there = sorted(set(true))
        assert run.metrics[part].uar == pytest.approx(
            reference.recall_score(true, predicted, labels=there, average="macro"), abs=1e-4
        )
        assert run.metrics[part].wa == pytest.approx(reference.accuracy_score(true, predicted), abs=1e-4)
        numbers = {label: number for number, label in enumerate(sorted({*true, *predicted}))}
        tensors = [torch.tensor([numbers[label] for label in column]) for column in (predicted, true)]
        recalls = multiclass_recall(*tensors, num_classes=len(numbers), average="none")
        assert run.metrics[part].uar == pytest.approx(
            float(recalls[[numbers[label] for label in there]].mean()), abs=1e-4
        )
        macro = multiclass_f1_score(*tensors, num_classes=len(numbers), average="macro")
        assert run.metrics[part].f1 == pytest.approx(float(macro), abs=1e-4)
        probabilities = table[[name for name in table if name.startswith("p_")]].to_numpy()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
        assert [name.removeprefix("p_") for name in table if name.startswith("p_")][
            probabilities[0].argmax()
        ] == predicted[0]
    assert read_json(tmp_path / "run" / "evaluation-test" / "metrics.json")["clip_ms"] > 0


def test_a_run_with_test_false_evaluates_only_validation_speakers(world: World, tmp_path: Path) -> None:
    settings = _settings(index=world.images, out=tmp_path / "run", features=FEW, inner_folds=0, test=False)
    assert set(classical(settings).metrics) == {"valid"}
    assert not (tmp_path / "run" / "evaluation-test").exists()


def test_a_leaky_run_prints_a_warning(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--index", str(world.images), "--out", str(tmp_path / "run"), "--features.parts", '["rms"]']
    given += ["--protocol", "random-leaky", "--inner_folds", "0", "--workers", "1", "--classifier", "knn"]
    assert run_verb("classical", given) == 0
    assert "these figures leak: speakers" in capsys.readouterr().out


def test_an_invalid_fold_is_refused_before_features_are_computed(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.images, tmp_path / "index", ignore=shutil.ignore_patterns(FOLDER))
    with pytest.raises(Exception, match="folds 0 to 4; fold 9 was requested"):
        classical(_settings(index=tmp_path / "index", fold=9, out=tmp_path / "out"))
    assert not (tmp_path / "index" / FOLDER).exists()


def test_few_clips_have_as_many_neighbours_as_there_are() -> None:
    table = _table()
    rows = table.clips.part("train")[:4]
    few = Table(SimpleNamespace(rows=table.clips.rows, part=lambda *_, **__: rows), table.values)  # type: ignore[arg-type]
    assert fit(few, _settings(classifier="knn", inner_folds=0)).chosen["n_neighbors"] == 4


def test_invalid_settings_and_missing_xgboost_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="inner_folds is 1; it must be 0, or 2 or more"):
        _settings(inner_folds=1)
    with pytest.raises(TrainingError, match="7 training speakers are too few for 20 inner folds"):
        fit(_table(), _settings(inner_folds=20))
    monkeypatch.setitem(__import__("sys").modules, "xgboost", None)
    with pytest.raises(FeatureError, match=r"pip install 'spectro\[xgboost\]'"):
        fit(_table(), replace(_settings(), classifier="xgboost"))


def test_a_failed_hyperparameter_search_raises_a_training_error() -> None:
    rows = [
        {"clip_id": str(speaker), "copy": 0, "speaker": str(speaker), "gender": ("female", "male")[speaker % 2]}
        for speaker in range(12)
    ]
    frame = pd.DataFrame(rows).assign(corpus="synthetic", emotion="calm", path="", language="en")
    table = Table(Clips.of(frame, "gender", "group-kfold", 0), np.eye(12, dtype=np.float32))
    with pytest.raises(TrainingError, match="logistic: the search failed on 8 clips"):
        fit(table, _settings(inner_folds=7))


def test_clips_without_a_speaker_get_their_own_group_in_inner_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = _table().clips.rows.drop(columns=["label", "target"]).astype({"speaker": "string"})
    frame.loc[frame["clip_id"].isin(frame["clip_id"].unique()[::2]), "speaker"] = pd.NA
    clips = Clips.of(frame, "emotion", "random-leaky", 0)
    seen: list[Any] = []
    original = GridSearchCV.fit
    monkeypatch.setattr(
        GridSearchCV, "fit", lambda self, x, y, *, groups: seen.append(groups) or original(self, x, y, groups=groups)
    )
    fit(Table(clips, np.random.default_rng(0).normal(size=(len(frame), 4)).astype(np.float32)), _settings())
    nameless = [name for name in seen[0] if name.startswith("clip ")]
    assert len(nameless) == len(set(nameless)) > 10
    assert {name for name in seen[0] if not name.startswith("clip ")} == {str(number) for number in range(10)}
