import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from spectro.cli import run_verb
from spectro.errors import CheckpointError, EvaluationError
from spectro.files import held, read_json, write_bytes, write_json
from spectro.model.pretrained import SPECS
from spectro.outputs import check_ours
from spectro.study import study as module
from spectro.study.grid import grid
from spectro.study.settings import StudySettings
from spectro.study.study import (
    COLUMNS,
    LOCK,
    possible_jobs,
    row,
    stages,
    study,
    summary,
    unfinished,
    with_rows,
    with_teachers,
)
from tests import processes
from tests.conftest import REPOSITORY, SMALL, World, WriteWav, voice, write_corpus


def _settings(folder: Path, corpus: Path, **changes: Any) -> StudySettings:
    base = {
        "backbone": "test_efficientnet",
        "batch_size": 8,
        "train": {"epochs": 1},
        "precision": "32-true",
        "accelerator": "cpu",
    }
    defaults: dict[str, Any] = {
        "table": folder / "results.csv",
        "runs": folder / "runs",
        "source": corpus,
        "weights": "none",
        "images": {"small": {"corpus": "synthetic", "spec": SMALL.to_dict()}},
        "base": {"finetune": base},
        "systems": {
            "too large": {"batch_size": 10_000},
            "small": {"masking": {"time_masks": 0}},
        },
        "protocols": {"group-kfold": [0]},
        "jobs": 2,
    }
    return StudySettings(**(defaults | changes))


def test_a_study_records_every_successful_run_and_repeats_none(world: World, tmp_path: Path) -> None:
    settings = _settings(tmp_path, world.corpus, transductive=True)
    table, failed = study(settings)
    assert list(table["system"]) == ["small", "small"]
    assert [(name[:9], "does not fill one batch of 10000" in why) for name, why in failed.items()] == [
        ("too large", True)
    ]

    kept, adapted = (one for _, one in pd.read_csv(settings.table).iterrows())
    folder = next((tmp_path / "runs").glob("small-group-kfold-fold0-seed0-*"))
    chosen = read_json(folder / "chosen" / "spectro.json")
    assert kept["valid_uar"] == chosen["metrics"]["valid"]["uar"]
    assert kept["test_uar"] == chosen["metrics"]["test"]["uar"]
    measured = read_json(folder / "chosen" / "evaluation-test" / "metrics.json")
    assert (kept["transductive"], adapted["transductive"], adapted["config"]) == (False, True, kept["config"])
    assert adapted["test_uar"] == measured["transductive"]["uar"]["value"]
    assert pd.isna(adapted["valid_uar"])
    assert chosen["training"]["settings"]["masking"]["time_masks"] == 0

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.log")}
    again, failed = study(replace(settings, systems={"small": settings.systems["small"]}))
    pd.testing.assert_frame_equal(again, pd.read_csv(settings.table))
    assert not failed
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.log")} == before


def test_weights_trained_on_the_test_speakers_give_no_row(world: World, tmp_path: Path) -> None:
    systems = {"heard": {"weights": str(world.checkpoint)}}
    table, failed = study(_settings(tmp_path, world.corpus, systems=systems, protocols={"group-kfold": [1]}))
    assert table.empty
    assert ["the starting weights were trained on the test speakers" in why for why in failed.values()] == [True]


def test_systems_learn_from_teachers_who_are_told_apart_by_content(world: World, tmp_path: Path) -> None:
    def systems(teacher: Path) -> dict[str, dict[str, Any] | None]:
        return {"taught": {"teachers": [str(teacher)], "teacher_share": 0.5}}

    def config(teacher: Path) -> str:
        return next(grid(_settings(tmp_path, tmp_path, systems=systems(teacher)))).config

    moved = tmp_path / "moved"
    shutil.copytree(world.checkpoint, moved)
    assert config(moved) == config(world.checkpoint)
    other = tmp_path / "other"
    shutil.copytree(world.checkpoint, other)
    write_json(other / "spectro.json", read_json(other / "spectro.json") | {"temperature": 0.5})
    assert config(other) != config(moved)
    with pytest.raises(CheckpointError, match="nothing: holds no checkpoint"):
        config(tmp_path / "nothing")
    with pytest.raises(EvaluationError, match=r"system taught: .*teachers"):
        _settings(tmp_path, tmp_path, systems={"taught": {"teachers": str(moved)}})
    table, failed = study(_settings(tmp_path, world.corpus, systems=systems(moved)))
    assert not failed and list(table["system"]) == ["taught"]
    folder = next((tmp_path / "runs").glob("taught-*"))
    assert read_json(folder / "chosen" / "spectro.json")["teacher_share"] == 0.5


@pytest.mark.slow
def test_a_system_of_the_study_teaches_the_system_of_its_own_fold_and_seed(world: World, tmp_path: Path) -> None:
    systems: dict[str, dict[str, Any] | None] = {
        "small": {},
        "taught": {"teachers": ["small", str(world.checkpoint)], "masking": {"time_masks": 0}},
    }
    settings = _settings(tmp_path, world.corpus, systems=systems, protocols={"group-kfold": [0, 1]}, seeds=[0, 1])
    runs = list(grid(settings))
    for teacher, taught in zip(runs[::2], runs[1::2], strict=True):
        assert taught.teachers == {"small": teacher} and (taught.wave, teacher.wave) == (1, 0)
    other = replace(settings, systems={**systems, "small": {"dropout": 0.5}})
    assert [run.config for run in grid(other)][1] != [run.config for run in grid(settings)][1]
    with pytest.raises(EvaluationError, match="the teacher small, of which the study fine-tunes 0 networks before"):
        list(grid(replace(settings, systems=dict(reversed(systems.items())))))
    settings = replace(settings, protocols={"group-kfold": [0]}, seeds=[0])
    table, failed = study(settings)
    assert not failed and list(table["system"]) == ["small", "taught"]
    small, taught = grid(settings)
    teachers = read_json(settings.runs / taught.name / "chosen" / "spectro.json")["teachers"]
    assert [one.split(" (")[0] for one in teachers] == [
        f"{small.name}/chosen",
        f"{world.checkpoint.parent.name}/checkpoint",
    ]
    assert with_teachers([taught], settings) == [taught]
    shutil.rmtree(settings.runs / small.name)
    assert with_teachers([taught], settings) == [taught, small]
    settings = replace(settings, systems={**systems, "small": {"batch_size": 10_000}})
    table, failed = study(settings)
    assert list(table["system"]) == ["small", "taught"]  # those of before
    assert failed[list(grid(settings))[1].name] == "its teacher small failed"


@pytest.mark.slow
@pytest.mark.parametrize("test", [True, False])
def test_a_system_is_trained_on_more_renderings_but_measured_on_its_own(
    wav: WriteWav, tmp_path: Path, test: bool
) -> None:
    for number, (actor, emotion) in enumerate(product(range(1, 25), ("03", "05"))):
        for channel, corpus in (("01", "speech"), ("02", "song")):
            name = f"{corpus}/Actor_{actor:02}/03-{channel}-{emotion}-01-01-01-{actor:02}.wav"
            wav(name, voice(0.5, pitch=100 + 3 * number + int(channel)))
    spec = SMALL.to_dict()
    images: dict[str, dict[str, Any]] = {
        "speech": {"corpus": "ravdess", "source": str(tmp_path / "speech"), "spec": spec},
        "song": {"corpus": "ravdess-song", "source": str(tmp_path / "song"), "spec": spec},
    }
    own = {"images": "speech", "protocols": "luna-jimenez"}
    systems: dict[str, dict[str, Any] | None] = {"alone": own, "more": {**own, "more_images": "song"}}
    protocols = {"luna-jimenez": [0], "group-kfold": [0]}
    settings = _settings(tmp_path, tmp_path, images=images, systems=systems, protocols=protocols, test=test)
    alone, more = grid(settings)
    assert alone.config != more.config and alone.settings == more.settings
    table, failed = study(replace(settings, systems={"more": systems["more"]}))
    assert not failed and list(table["corpus"]) == ["ravdess"]
    folder, part = settings.runs / more.name / "chosen", "test" if test else "valid"
    found = read_json(folder / "spectro.json")
    assert found["data"]["corpora"] == ["ravdess", "ravdess-song"]
    assert found["data"]["training_pictures"] == 2 * 2 * len(found["split"]["speakers"]["train"])
    report = read_json(folder / f"evaluation-{part}" / "metrics.json")
    assert report["clips"] == 2 * len(found["split"]["speakers"][part])
    expected = report["uar"]["value"] if test else found["metrics"]["valid"]["uar"]
    assert table[f"{part}_uar"][0] == expected


def test_every_system_runs_on_every_fold_and_seed(tmp_path: Path) -> None:
    settings = _settings(tmp_path, tmp_path, protocols={"group-kfold": [0, 2]}, seeds=[0, 1])
    runs = list(grid(settings))
    assert {(run.system, run.fold, run.seed) for run in runs} == {
        (system, fold, seed) for system in settings.systems for fold in (0, 2) for seed in (0, 1)
    }
    assert len({run.name for run in runs}) == len(runs) == 8
    assert len({run.config for run in runs}) == 2


def test_a_rendering_runs_only_under_its_own_protocols(tmp_path: Path) -> None:
    small = {"corpus": "synthetic", "spec": SMALL.to_dict()}
    images: dict[str, dict[str, Any]] = {"large": small, "few": {**small, "copies": 1, "protocols": "loso"}}
    protocols = {"group-kfold": [0], "loso": [0, 1]}
    settings = _settings(tmp_path, tmp_path, images=images, systems={"one": {}}, protocols=protocols)
    places = {(run.images, run.protocol, run.fold) for run in grid(settings)}
    assert places == {("large", "group-kfold", 0), *((name, "loso", fold) for name in images for fold in (0, 1))}
    assert settings.rendering("few") == {**small, "copies": 1}


@pytest.mark.parametrize(
    ("images", "system", "problem"),
    [
        ({"protocols": "luna-jimenez"}, {}, "the images small run under luna-jimenez, which the study lacks"),
        ({"protocols": 3}, {}, "images small: protocols"),
        ({"protocols": ["loso"]}, {"protocols": "group-kfold"}, "system one has no run"),
    ],
)
def test_protocols_that_fit_nothing_are_refused(
    images: dict[str, Any], system: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    protocols = {"group-kfold": [0], "loso": [0]}
    with pytest.raises(EvaluationError, match=problem):
        _settings(
            tmp_path,
            tmp_path,
            images={"small": {"corpus": "synthetic", **images}},
            systems={"one": system},
            protocols=protocols,
        )


def test_a_system_overrides_individual_base_settings(tmp_path: Path) -> None:
    base = {"finetune": {"train": {"epochs": 3, "mixup": 0.5}, "batch_size": 8}}
    settings = _settings(tmp_path, tmp_path, base=base, systems={"short": {"train": {"epochs": 1}}, "plain": {}})
    assert [run.settings["train"] for run in grid(settings)] == [
        {"epochs": 1, "mixup": 0.5},
        {"epochs": 3, "mixup": 0.5},
    ]


def test_settings_that_affect_results_change_the_config_fingerprint(tmp_path: Path) -> None:
    def config(**changes: Any) -> str:
        return next(grid(_settings(tmp_path, tmp_path, systems={"one": {}}, **changes))).config

    assert config() == config(jobs=1) == config(seeds=[4])
    others = [
        config(images={"small": {"corpus": "synthetic"}}),
        config(base={"finetune": {"backbone": "mobilenet"}}),
        config(protocols={"loso": [0]}),
        config(labels=["gender"]),
        config(weights="auto"),
    ]
    assert len({config(), *others}) == 6


def test_test_metrics_are_omitted_unless_testing_is_requested(world: World, tmp_path: Path) -> None:
    run = next(grid(_settings(tmp_path, tmp_path, systems={"one": {}})))
    hidden, shown = (row(run, world.checkpoint, test=test) for test in (False, True))
    different = {name for name in COLUMNS if getattr(hidden, name) != getattr(shown, name)}
    assert different == {"test_wa", "test_uar", "test_f1"}
    assert (hidden.test_uar, hidden.valid_uar) == (None, world.trained.about.metrics["valid"].uar)


def test_systems_are_pooled_on_validation_speakers_when_testing_is_off(world: World, tmp_path: Path) -> None:
    common = {"backbone": "mobilenet", "batch_size": 8, "train": {"epochs": 1}, "monitor": "last"}
    base = {"finetune": {**common, "precision": "32-true", "accelerator": "cpu"}}
    voices = world.trained.about.split.speakers["train"][:3]
    systems: dict[str, Any] = {
        "as it is": {},
        "three voices": {"valid_speakers": list(voices)},
        "all": {"train_on": "valid"},
    }
    settings = _settings(tmp_path, world.corpus, base=base, systems=systems, test=False, transductive=True)
    table, failed = study(settings)
    assert (len(table), failed) == (3, {})
    assert table["test_uar"].isna().all()
    pooled = pd.read_csv(settings.pooled)
    assert set(pooled["kind"]) == {"single", "transductive"} and set(pooled["system"]) <= {"as it is", "three voices"}
    by_system = pooled[pooled["kind"] == "single"].set_index("system")
    assert by_system["clips"]["three voices"] == 18
    valid = table.set_index("system")["valid_uar"]  # rows are in the order in which runs ended
    assert by_system["uar"]["as it is"] == pytest.approx(valid["as it is"], abs=1e-4)
    assert not settings.page.exists() and not list(settings.runs.rglob("evaluation-test"))
    assert set(by_system["part"]) == {"valid"} and by_system["ece"].isna().all()
    for folder in settings.runs.glob("*/chosen"):
        assert "test" not in read_json(folder / "spectro.json").get("metrics", {}), "not even looked at"
    card = next(settings.runs.glob("three*")) / "chosen" / "card.md"
    assert "The number of epochs, 1, was set in advance." in card.read_text()


def test_runs_without_test_scores_are_unfinished_once_testing_is_requested(world: World, tmp_path: Path) -> None:
    blind = _settings(tmp_path, tmp_path, systems={"one": {}}, test=False)
    seeing = replace(blind, test=True)
    run = next(grid(blind))
    empty = pd.DataFrame(columns=list(COLUMNS))
    compared = with_rows(empty, [row(run, world.checkpoint, test=False)])
    assert unfinished([run], empty, blind) == [run]
    assert unfinished([run], compared, blind) == []
    assert unfinished([run], compared, seeing) == [run]
    tested = with_rows(compared, [row(run, world.checkpoint, test=True)])
    assert len(tested) == 1
    assert unfinished([run], tested, seeing) == []
    assert unfinished([run], tested, replace(seeing, transductive=True)) == [run]


def test_the_summary_averages_all_runs_of_a_system() -> None:
    rows = [
        {"system": s, "config": s, "protocol": "p", "labels": "emotion", "valid_uar": v, "test_uar": t}
        for s, v, t in (("a", 0.5, 0.4), ("a", 0.7, 0.6), ("b", 0.9, 0.5))
    ]
    found = summary(pd.DataFrame(rows, columns=list(COLUMNS))).set_index("system")
    assert list(found.index) == ["b", "a"]
    assert found.loc["a", "valid_uar"] == pytest.approx(0.6)
    assert found.loc["a", "test_sd"] == pytest.approx(0.02**0.5)
    assert found.loc["a", "runs"] == 2


def test_augmentation_and_images_are_axes_of_the_grid(tmp_path: Path) -> None:
    systems = {
        "plain": {"images": "small"},
        "both": {"copies": "none", "augmented": {"copies": "one", "train": {"mixup": 0.1}}},
    }
    images = {"small": {"corpus": "synthetic"}, "large": {"corpus": "synthetic", "copies": 1}}
    runs = list(grid(_settings(tmp_path, tmp_path, systems=systems, images=images)))
    assert [(run.system, run.images, run.augmented) for run in runs] == [
        ("plain", "small", None),
        ("both", "small", False),
        ("both", "small", True),
        ("both", "large", False),
        ("both", "large", True),
    ]
    assert [run.settings["copies"] for run in runs[1:3]] == ["none", "one"]
    assert runs[2].settings["train"] == {"epochs": 1, "mixup": 0.1}
    assert not {"augmented", "images", "verb"} & set(runs[2].settings)
    assert len({run.name for run in runs}) == 5


def test_systems_run_under_the_protocols_set_for_them_or_their_base(tmp_path: Path) -> None:
    systems: dict[str, Any] = {"a": {}, "b": {"protocols": ["loso", "group-kfold"]}, "c": {"protocols": "random-leaky"}}
    protocols = {"group-kfold": [0], "loso": [3], "random-leaky": [0]}
    base = {"finetune": {"protocols": "loso", "images": "small"}}
    settings = _settings(tmp_path, tmp_path, systems=systems, protocols=protocols, base=base)
    found = [(run.system, run.protocol) for run in grid(settings)]
    assert found == [("b", "group-kfold"), ("a", "loso"), ("b", "loso"), ("c", "random-leaky")]
    assert not {"protocols", "images"} & set(next(grid(settings)).settings)


def test_a_system_can_set_its_own_seeds(tmp_path: Path) -> None:
    systems: dict[str, Any] = {"a": {"seeds": [0, 1, 7]}, "b": {}}
    settings = _settings(tmp_path, tmp_path, systems=systems, seeds=[1])
    runs = list(grid(settings))
    assert [(run.system, run.seed) for run in runs] == [("a", 1), ("b", 1), ("a", 0), ("a", 7)]
    assert "seeds" not in runs[0].settings
    plain = next(grid(_settings(tmp_path, tmp_path, systems={"a": {}}, seeds=[1])))
    assert plain.config == runs[0].config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {"a": {"augmented": 3}}}, r"system a: augmented: Expected 'object \| null', got 'int'"),
        ({"systems": {"a": {"verb": "classical", "features": 3}}}, r"system a: features: Expected 'object"),
        ({"systems": {"../../a": {}}}, "'../../a' cannot be the name of a folder"),
        ({"images": {"../b": {}}}, "'../b' cannot be the name of a folder"),
        ({"quick": True, "shorter": {"systems": 3}}, "shorter sets systems to 3, which does not fit"),
        ({"quick": True, "shorter": {"table": 3}}, "shorter sets table to 3, which does not fit"),
        ({"quick": True, "shorter": {"systems": {"new": 3}}}, "the study sets new to 3; it lists settings"),
    ],
)
def test_settings_of_the_wrong_type_and_unsafe_or_unknown_names_are_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=message):
        _settings(tmp_path, tmp_path, **changes).shortened()


def test_a_table_that_is_not_csv_is_rejected(tmp_path: Path) -> None:
    settings = _settings(tmp_path, tmp_path)
    settings.table.write_bytes(b"\xff\xfe\x00\x01" * 40)
    with pytest.raises(EvaluationError, match="is not a table of a study; name another with --table"):
        study(settings)


def test_a_quick_study_omits_averages_of_omitted_systems(tmp_path: Path) -> None:
    settings = _settings(tmp_path, tmp_path, averages={"both": ["too large", "small"]})
    assert settings.chosen_averages() == [("both", ["too large", "small"])]
    for shorter in ({"systems": {"small": None}}, {"averages": {"both": None}}):
        assert replace(settings, quick=True, shorter=shorter).shortened().chosen_averages() == []


def test_a_rendering_accepts_the_name_of_a_spec_or_a_spec_file(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPECS["yamnet"].to_dict()))
    settings = _settings(tmp_path, tmp_path, images={"named": {"spec": "yamnet"}, "file": {"spec": str(spec)}})
    assert settings.rendering("named") == {"spec": SPECS["yamnet"].to_dict()}
    assert settings.rendering("file") == {"spec": str(spec)}


def test_a_quick_study_applies_the_shorter_settings(tmp_path: Path) -> None:
    shorter = {"table": "quick.csv", "protocols": {"group-kfold": [1]}, "systems": {"small": None, "new": {}}}
    settings = _settings(tmp_path, tmp_path, shorter=shorter)
    assert settings.shortened() is settings
    quick = replace(settings, quick=True).shortened()
    assert [(run.system, run.fold) for run in grid(quick)] == [("too large", 1), ("new", 1)]
    assert (quick.table, quick.page) == (Path("quick.csv"), settings.runs / "quick.html")
    with pytest.raises(EvaluationError, match="shorter sets folds, which a study does not know"):
        replace(settings, quick=True, shorter={"folds": [0]}).shortened()


def test_each_verb_gets_its_own_settings(tmp_path: Path) -> None:
    systems = {"svm": {"verb": "classical", "classifier": "svm-rbf"}, "net": {}}
    settings = _settings(tmp_path, tmp_path, systems=systems, test=False)
    (svm, net) = grid(settings)
    ((name, verb, given),) = stages(settings, svm, threads=1)
    assert (name, verb, given["classifier"], given["test"], given["workers"]) == (
        "chosen",
        "classical",
        "svm-rbf",
        False,
        1,
    )
    assert "weights" not in given and "backbone" not in given
    (_name, verb, trained), (_, _, measured) = stages(settings, net, threads=1)
    assert (verb, trained["test"], measured["part"]) == ("finetune", False, "valid")
    tested = stages(replace(settings, test=True), net, threads=1)
    assert [verb for _name, verb, _given in tested] == ["finetune", "evaluate"]


def test_cores_memory_and_gpu_limit_the_number_of_parallel_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("spectro.processes.cores", lambda: 8)
    for free, jobs in ((100, 8), (7, 3), (1, 1)):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free * 2**30))
        assert possible_jobs() == jobs
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert possible_jobs() == 1


@pytest.mark.parametrize(("allowed", "each"), [(6, 3), (1, 1)])
def test_parallel_runs_share_the_threads_that_the_study_may_use(
    allowed: int, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, int] = {}

    def command(verb: str, _given: dict[str, Any], _config: Path, log: Path, threads: int) -> int:
        used[verb] = threads
        write_bytes(log, b"stopped")
        return 0 if verb == "render" else 2

    monkeypatch.setenv("OMP_NUM_THREADS", str(allowed))
    monkeypatch.setattr(module, "command", command)
    _table, failed = study(_settings(tmp_path, tmp_path, systems={"one": {}}))
    assert list(failed.values()) == [f"exit code 2: stopped (see {next(tmp_path.rglob('chosen.log'))})"]
    assert used == {"render": allowed, "finetune": each}


def test_duplicate_runs_are_rejected(tmp_path: Path) -> None:
    for changes in (
        {"systems": {"one": {}, "other": {}}},
        {"systems": {"one": {"augmented": {}}}},
        {"systems": {"one": {}}, "seeds": [0, 0]},
    ):
        with pytest.raises(EvaluationError, match=r"the study has the same run twice: one-.* and "):
            study(_settings(tmp_path, tmp_path, **changes))


def test_a_second_study_in_the_same_folder_is_rejected(tmp_path: Path) -> None:
    settings = _settings(tmp_path, tmp_path, systems={"one": {}})
    with held(settings.runs / LOCK) as free:
        assert free
        with pytest.raises(EvaluationError, match="another study works there; wait, or name other --runs"):
            study(settings)
    with held(settings.runs / LOCK) as free:
        assert free


def test_published_figures_are_read_before_training_starts(tmp_path: Path) -> None:
    settings = _settings(tmp_path, tmp_path, systems={"one": {}}, published=tmp_path / "none.csv")
    with pytest.raises(EvaluationError, match=r"none\.csv: cannot be read"):
        study(settings)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "names no systems"),
        ({"systems": {"a": None}}, "names no systems: all are set to null"),
        ({"images": {"a": None}}, "the study sets a to None; it lists settings"),
        ({"systems": {"a": {"seed": 3}}}, "system a sets seed, which the study chooses"),
        ({"averages": {"both": ["a"]}}, "the average both is of a; it needs a name of its own, and two or more"),
        ({"averages": {"both": ["a", "z"]}}, "of the systems too large, small"),
        ({"averages": {"a/b": ["too large", "small"]}}, "'a/b' cannot be the name of a folder"),
        (
            {"averages": {"both": ["too large", "small"]}, "images": {"a": {}, "b": {}}},
            "the average both is of too large, which has several forms; give it one rendering",
        ),
        ({"images": {"a": {"spec": "nope"}}}, "the images a name the spec nope, which is no file; there are mn04_as"),
        ({"systems": {"a": {"images": "large"}}}, "reads the images large, which the study lacks"),
        ({"systems": {"a": {"train_on": "all"}}}, "system a trains on all speakers"),
        (
            {"systems": {"a": {"protocols": {"group-kfold": [0]}}}},
            r"system a: protocols: Expected 'str \| array \| null', got 'object'",
        ),
        ({"systems": {"a": {"protocols": "loso"}}}, "system a runs under loso, which the study lacks"),
        ({"systems": {"a": {"seeds": 3}}}, r"system a: seeds: Expected 'array \| null', got 'int'"),
        ({"systems": {"a": {"seeds": []}}}, "system a: seeds: Expected 'array' of length >= 1"),
        ({"systems": {"a": {"seeds": [0, "x"]}}}, r"system a: seeds\[1\]: Expected 'int', got 'str'"),
        ({"jobs": -1}, "jobs is -1"),
        ({"protocols": {"group-kfold": []}}, "names no fold of group-kfold"),
        ({"systems": {"a": {"augmented": {"train_on": "all"}}}}, "system a trains on all speakers"),
        ({"protocols": {}}, "names no protocols"),
        ({"systems": {"a": {"verb": "serve"}}}, "the verb serve; systems are trained by finetune, classical, speech"),
        ({"systems": {"a": {"augmented": {"images": "x"}}}}, "system a sets images where augmentation is on"),
        ({"systems": {"a": {"verb": "classical", "more_images": "a"}}}, "more_images, but classical trains on one"),
        ({"systems": {"a": {"more_images": "small"}}}, "more_images, but under group-kfold their speakers would be"),
        (
            {"systems": {"a": {"more_images": "large"}}, "protocols": {"emobox": [0]}},
            "reads the images large, which the study lacks",
        ),
        (
            {"systems": {"a": {"more_images": "small"}}, "protocols": {"emobox": [0]}},
            "system a is measured on its more_images small; list its images",
        ),
        ({"systems": {"a": {"augmented": {"fold": 1}}}}, "system a sets fold, which the study chooses"),
    ],
)
def test_inconsistent_study_settings_are_rejected(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        _settings(tmp_path, tmp_path, **changes)


def test_a_foreign_table_is_not_overwritten(world: World, tmp_path: Path) -> None:
    settings = _settings(tmp_path, world.corpus)
    settings.table.write_text("a,b\n1,2\n")
    with pytest.raises(EvaluationError, match="is not a table of a study"):
        study(settings)
    assert settings.table.read_text() == "a,b\n1,2\n"
    with pytest.raises(EvaluationError, match="already exists, and spectro did not make it"):
        check_ours([settings.table], error=EvaluationError)
    settings.table.rename(settings.pooled)
    with pytest.raises(EvaluationError, match="is not a table of pooled figures"):
        study(settings)


def test_recordings_that_cannot_be_rendered_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "command", _in_this_process)
    corpus = write_corpus(tmp_path / "corpus")
    next(corpus.rglob("*.wav")).write_bytes(b"")
    systems = {"tree": {"verb": "classical", "classifier": "tree", "features": {"parts": ["rms"]}, "inner_folds": 0}}
    _table, failed = study(_settings(tmp_path, corpus, systems=systems, base={}))
    assert list(failed) == ["recordings of small"]
    assert "failures.csv" in failed["recordings of small"]


def _in_this_process(verb: str, given: dict[str, Any], config: Path, _log: Path, _threads: int) -> int:
    alone = {"workers": 1} if verb in ("render", "features") else {}
    write_bytes(config, yaml.safe_dump(given | alone).encode())
    return run_verb(verb, ["--config", str(config)])


def _run_all_in_one_process() -> None:
    module.command = _in_this_process


def test_a_killed_study_resumes_and_writes_the_same_table(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "command", _in_this_process)
    systems = {
        "svm": {"verb": "classical", "augmented": {"copies": "all"}},
        "knn": {"verb": "classical", "classifier": "knn"},
    }
    base = {"classical": {"features": {"parts": ["rms"]}, "inner_folds": 0}}
    options = {"systems": systems, "base": base, "protocols": {"group-kfold": [0]}, "jobs": 1}
    images = {"small": {"corpus": "synthetic", "spec": SMALL.to_dict(), "copies": 2}}
    shutil.copytree(world.images, tmp_path / "whole" / "runs" / "images" / "small")  # as it would be rendered
    whole, failed = study(_settings(tmp_path / "whole", world.corpus, images=images, **options))
    assert len(whole) == 3 and not failed

    (tmp_path / "cut" / "runs").mkdir(parents=True)
    (tmp_path / "cut" / "runs" / "images").symlink_to(tmp_path / "whole" / "runs" / "images")
    config, table = tmp_path / "study.yaml", tmp_path / "cut" / "results.csv"
    given = {"images": images, "source": str(world.corpus), "runs": str(tmp_path / "cut" / "runs"), **options}
    config.write_text(yaml.safe_dump(given))
    arguments = ["study", "--config", str(config), "--table", str(table)]
    processes.killed(arguments, tmp_path / "log", table.exists, _run_all_in_one_process)
    before = pd.read_csv(table)
    assert 1 <= len(before) < 3

    cut, failed = study(_settings(tmp_path / "cut", world.corpus, images=images, **options))
    assert not failed
    timeless = [name for name in COLUMNS if name not in ("train_s", "clip_ms")]
    order = ["config", "fold"]
    left, right = (pd.read_csv(tmp_path / name / "results.csv").sort_values(order) for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(left[timeless].reset_index(drop=True), right[timeless].reset_index(drop=True))
    kept = right.merge(before, on=["config", "fold", "seed"], suffixes=("", "_before"))
    assert len(kept) == len(before) and (kept["train_s"] == kept["train_s_before"]).all()
    assert len(cut) == 3
    assert "svm, augmented" in (tmp_path / "cut" / "runs" / "results.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray's processes start one after the other, each with PyTorch
def test_a_study_on_a_cluster_writes_the_same_table_as_a_local_study(world: World, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="spectro[ray] is not installed")
    features = {"parts": ["mfcc"], "statistics": ["mean"], "mfcc": 13}
    systems: dict[str, Any] = {
        "svm": {"verb": "classical", "features": features, "inner_folds": 0},
        "too large": {"batch_size": 10_000},
    }
    settings = _settings(tmp_path, world.corpus, systems=systems, protocols={"group-kfold": [0, 1]})
    _table, failed = study(settings)
    (tmp_path / "runs").rename(tmp_path / "here")
    config, table = tmp_path / "study.yaml", tmp_path / "cluster.csv"
    given = {**json.loads(json.dumps(asdict(settings), default=str)), "jobs": 0, "table": str(table)}
    config.write_text(yaml.safe_dump(given))
    command = [sys.executable, "-m", "spectro", "study", "--config", str(config), "--cluster", "local"]
    done = subprocess.run(
        [*command, "--cluster_cpus", "0.5"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert all(f"failed: {name}: exit code 2" in done.stderr for name in failed) and len(failed) == 2
    timeless = [name for name in COLUMNS if name not in ("train_s", "clip_ms")]
    tables = [one.sort_values("fold", ignore_index=True)[timeless] for one in map(pd.read_csv, (settings.table, table))]
    pd.testing.assert_frame_equal(*tables)
    assert "cluster" not in (tmp_path / "runs" / "cluster.html").read_text().partition("Settings")[2]
