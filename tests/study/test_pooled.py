import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from spectro.errors import EvaluationError
from spectro.evaluate import plots
from spectro.evaluate.intervals import calibration
from spectro.evaluate.report import clip_columns, with_probabilities, write_predictions, write_report
from spectro.files import read_json, write_bytes, write_json
from spectro.rendering.index import read_index
from spectro.study.grid import grid
from spectro.study.pooled import COLUMNS, write_pooled
from spectro.study.results import entries
from spectro.study.settings import StudySettings
from spectro.study.study import RESULT
from tests.conftest import World

EMOTIONS = ("calm", "happy", "angry")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of dozens of pictures that nobody looks at; it takes nearly all of the time."""
    monkeypatch.setattr(plots, "_save", lambda _figure, path: write_bytes(path, b"not drawn"))


def _probabilities(seed: int, targets: pd.Series, certainty: float) -> np.ndarray:  # type: ignore[type-arg]
    logits = np.random.default_rng(seed).normal(size=(len(targets), 3))
    logits[np.arange(len(targets)), [EMOTIONS.index(name) for name in targets]] += certainty
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def _study(
    world: World, root: Path, systems: tuple[str, ...] = ("net",)
) -> tuple[StudySettings, pd.DataFrame, dict[tuple[str, int, int], Path]]:
    """Two folds and two seeds of a network, with what they said of the test clips before and after adaptation."""
    settings = StudySettings(
        table=root / "results.csv",
        runs=root / "runs",
        images={"small": {"corpus": "synthetic"}},
        systems={name: {"weights": "none", "dropout": 0.1 * place} for place, name in enumerate(systems)},
        protocols={"group-kfold": [0, 1]},
        seeds=[0, 1],
    )
    (root / "runs" / "images").mkdir(parents=True)
    (root / "runs" / "images" / "small").symlink_to(world.images)
    index, _spec = read_index(world.images)
    untouched = index[index["copy"] == 0].assign(label=lambda one: one["emotion"])
    untouched = untouched[untouched["label"].isin(EMOTIONS)]
    rows, folders = [], {}
    for run in grid(settings):
        folder = folders[run.key] = settings.runs / run.name / RESULT
        speakers = sorted(set(untouched["speaker"]))[4 * run.fold : 4 * run.fold + 4]
        clips = clip_columns(untouched[untouched["speaker"].isin(speakers)])
        drawn = 100 * systems.index(run.system) + 10 * run.fold + run.seed
        table = with_probabilities(clips, EMOTIONS, _probabilities(drawn, clips["label"], 1.0))
        conditions = {"checkpoint": "x", "part": "test", "leak": "", "speakers_heard_in_training": []}
        report = write_report(folder / "evaluation-test", conditions | {"temperature": 2.0}, table, EMOTIONS, rounds=5)
        adapted = with_probabilities(clips, EMOTIONS, _probabilities(drawn + 5, clips["label"], 3.0))
        write_predictions(folder / "evaluation-test" / "predictions-transductive.csv", adapted)
        rows.append(
            {"config": run.config, "fold": run.fold, "seed": run.seed, "corpus": "synthetic", "transductive": False}
            | {"test_uar": report["uar"]["value"]}
        )
    return settings, pd.DataFrame(rows), folders


def test_pooled_scores_are_reported_per_kind_of_prediction(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, table, folders = _study(world, tmp_path)
    monkeypatch.undo()  # here the pictures are drawn
    found = write_pooled(settings, list(entries(settings, table, folders))).set_index("kind")
    assert list(found.index) == ["single", "ensemble", "transductive", "transductive ensemble"]
    assert [*pd.read_csv(tmp_path / "results-pooled.csv").columns] == list(COLUMNS)
    of_seed = table.groupby("seed")["test_uar"].mean()
    assert found["mean_uar"]["single"] == pytest.approx(of_seed.mean(), abs=1e-4)
    assert found["sd_of_seeds"]["single"] == pytest.approx(of_seed.std(), abs=1e-4)
    assert pd.isna(found["sd_of_seeds"]["ensemble"])
    assert found["clips"]["single"] == 2 * found["clips"]["ensemble"]
    assert set(found["seeds"]) == set(found["folds"]) == {2}

    read = {seed: [] for seed in (0, 1)}
    for (_config, _fold, seed), folder in folders.items():
        read[seed].append(pd.read_csv(folder / "evaluation-test" / "predictions.csv"))
    seeds = [pd.concat(tables) for tables in read.values()]
    probabilities = np.mean([one[[f"p_{label}" for label in EMOTIONS]].to_numpy() for one in seeds], axis=0)
    named = np.array(EMOTIONS)[probabilities.argmax(axis=1)]
    assert found["uar"]["ensemble"] == pytest.approx(recall_score(seeds[0]["label"], named, average="macro"), abs=1e-4)
    targets = np.array([EMOTIONS.index(name) for name in seeds[0]["label"]])
    assert found["nll"]["ensemble"] == pytest.approx(calibration(probabilities, targets)["nll"], abs=1e-4)
    sharper = [one[[f"p_{label}" for label in EMOTIONS]].to_numpy() ** 2 for one in seeds]
    raw = np.mean([one / one.sum(axis=1, keepdims=True) for one in sharper], axis=0)
    assert found["nll_untempered"]["ensemble"] == pytest.approx(calibration(raw, targets)["nll"], abs=1e-3)
    assert found["uar"]["transductive"] > found["uar"]["single"]
    assert pd.isna(found["gain"]["single"])
    gain = found["uar"]["transductive"] - found["uar"]["single"]
    assert found["gain"]["transductive"] == pytest.approx(gain, abs=1e-4)
    assert found["part"].eq("test").all() and found["runs"].eq(4).all() and found["asked"].eq(4).all()
    assert 0 < found["gain_low"]["transductive"] < gain < found["gain_high"]["transductive"]
    narrow = found["gain_high"]["transductive"] - found["gain_low"]["transductive"]
    assert narrow < sum(found["high"][kind] - found["low"][kind] for kind in ("single", "transductive"))

    reports = settings.runs / "pooled" / "results"
    assert {path.name for path in reports.iterdir()} == {
        f"net-emotion-group-kfold-test-{kind.replace(' ', '-')}" for kind in found.index
    }
    report = read_json(reports / "net-emotion-group-kfold-test-ensemble" / "metrics.json")
    assert (report["folds"], report["seeds"], report["uar"]["value"]) == ([0, 1], [0, 1], found["uar"]["ensemble"])
    assert (reports / "net-emotion-group-kfold-test-ensemble" / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert not (reports / "net-emotion-group-kfold-test-single" / "gallery.png").exists(), (
        "each clip would be there twice"
    )


def test_an_average_combines_all_networks_of_its_systems(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path, ("net", "other"))
    settings = replace(settings, averages={"both": ["net", "other"]})
    found = write_pooled(settings, list(entries(settings, table, folders)))
    row, adapted = (one for _place, one in found[found["system"] == "both"].iterrows())
    assert adapted["kind"] == "transductive average" and adapted["uar"] > row["uar"]
    first = found[(found["system"] == "net") & (found["kind"] == "transductive")].iloc[0]
    assert adapted["gain"] == pytest.approx(adapted["uar"] - first["uar"], abs=1e-3)
    read = {place: pd.read_csv(folder / "evaluation-test" / "predictions.csv") for place, folder in folders.items()}
    clips = pd.concat([own for (_config, fold, _seed), own in read.items()]).drop_duplicates("clip_id")
    shown = [f"p_{label}" for label in EMOTIONS]
    probabilities = pd.concat(read.values()).groupby("clip_id")[shown].mean().loc[clips["clip_id"]].to_numpy()
    named = np.array(EMOTIONS)[probabilities.argmax(axis=1)]
    assert row["uar"] == pytest.approx(recall_score(clips["label"], named, average="macro"), abs=1e-4)
    assert (row["kind"], row["runs"], row["clips"], row["folds"]) == ("average", 8, len(clips), 2)
    single = found[(found["system"] == "net") & (found["kind"] == "single")].iloc[0]
    assert row["gain"] == pytest.approx(row["uar"] - single["uar"], abs=1e-3)
    again = write_pooled(settings, list(entries(settings, table, folders)))
    pd.testing.assert_frame_equal(again, found)
    gone = dict.fromkeys(folders, tmp_path / "gone")
    kept = write_pooled(settings, list(entries(settings, table, gone)))
    columns = ["system", "kind", "config", "uar", "low", "high", "runs"]
    pd.testing.assert_frame_equal(kept[columns], found[columns], check_dtype=False, atol=1e-4)
    some = write_pooled(settings, list(entries(settings, table[table["config"] == single["config"]], folders)))
    assert "both" not in set(some["system"])


def test_augmented_forms_are_compared_with_the_plain_form_of_the_same_kind(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path)
    (entry,) = entries(settings, table, folders)
    found = write_pooled(settings, [entry, replace(entry, augmented=True)])
    again = found[found["augmented"].eq(True)]
    assert list(again["kind"]) == ["single", "ensemble", "transductive", "transductive ensemble"]
    assert (again["gain"] == 0).all()


def test_incomplete_systems_have_no_gain_and_no_ensemble(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path)
    found = write_pooled(settings, list(entries(settings, table[:3], folders)))
    assert list(found["kind"]) == ["single", "transductive"]
    assert found["gain"].isna().all() and found["sd_of_seeds"].isna().all()
    assert (set(found["runs"]), set(found["asked"])) == ({3}, {4})
    one_seed = replace(settings, seeds=[0])
    found = write_pooled(one_seed, list(entries(one_seed, table[table["seed"] == 0], folders)))
    assert list(found["kind"]) == ["single", "transductive"]


def test_gains_are_relative_to_the_first_system_with_the_same_kind(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path, systems=("net", "other"))
    found = write_pooled(settings, list(entries(settings, table, folders))).set_index(["system", "kind"])
    for kind in ("single", "ensemble", "transductive", "transductive ensemble"):
        expected = found["uar"]["other", kind] - found["uar"]["net", kind]
        assert found["gain"]["other", kind] == pytest.approx(expected, abs=2e-4)
    first = settings.runs / next(run.name for run in grid(settings) if run.system == "net") / RESULT
    shutil.rmtree(first)
    shutil.rmtree(settings.pooled.parent / "runs" / "pooled")
    settings.pooled.unlink()
    alone = write_pooled(settings, list(entries(settings, table, folders)))
    assert set(alone["system"]) == {"other"}
    assert alone.loc[alone["kind"] == "single", "gain"].isna().all(), "nothing to be compared with"


def test_scores_of_deleted_predictions_are_kept(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path)
    before = write_pooled(settings, list(entries(settings, table, folders)))
    written = settings.pooled.read_text()
    for folder in folders.values():
        shutil.rmtree(folder)
    found = list(entries(settings, table, folders))
    after = write_pooled(settings, found)
    assert settings.pooled.read_text() == written
    assert list(after["uar"]) == list(before["uar"])
    settings.pooled.write_text("a,b\n1,2\n")
    with pytest.raises(EvaluationError, match="is not a table of pooled figures"):
        write_pooled(settings, found)


def test_runs_without_probabilities_are_left_out(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path)
    for folder in folders.values():
        path = folder / "evaluation-test" / "metrics.json"
        write_json(path, {key: value for key, value in read_json(path).items() if key != "calibration"})
    assert not len(write_pooled(settings, list(entries(settings, table, folders))))
    assert not settings.pooled.exists()


def test_an_ensemble_of_seeds_tested_on_different_clips_raises_an_error(world: World, tmp_path: Path) -> None:
    settings, table, folders = _study(world, tmp_path)
    path = next(iter(folders.values())) / "evaluation-test" / "predictions.csv"
    whole = pd.read_csv(path)
    for changed in (whole[1:], whole.assign(label=whole["label"].to_numpy()[::-1])):
        changed.to_csv(path, index=False)
        with pytest.raises(
            EvaluationError, match="net: the networks of fold 0 were measured on different clips or labels"
        ):
            write_pooled(settings, list(entries(settings, table, folders)))
