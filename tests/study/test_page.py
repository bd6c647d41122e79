import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from spectro.errors import EvaluationError
from spectro.evaluate import plots
from spectro.evaluate.report import clip_columns, write_report
from spectro.files import write_bytes
from spectro.rendering.index import read_index
from spectro.study import pooled
from spectro.study.figures import costs
from spectro.study.grid import grid
from spectro.study.page import PUBLISHED, write_page
from spectro.study.pooled import write_pooled
from spectro.study.results import Folders, _pooled, entries
from spectro.study.settings import StudySettings
from spectro.study.study import COLUMNS, RESULT, Row, with_rows
from tests.conftest import World

CHROMIUM = shutil.which("chromium")
EMOTIONS = ("calm", "happy", "angry")


def _write(settings: StudySettings, table: pd.DataFrame, folders: Folders) -> None:
    found = list(entries(settings, table, folders))
    write_page(settings, found, write_pooled(settings, found))


@pytest.fixture(scope="module")
def study(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudySettings, pd.DataFrame, dict[Any, Path]]:
    """A study that is done: two systems on two protocols, one of them a network, with what their runs left."""
    root = tmp_path_factory.mktemp("study")
    (root / "runs" / "images").mkdir(parents=True)
    (root / "runs" / "images" / "small").symlink_to(world.images)
    (root / "published.csv").write_text(
        f'{",".join(PUBLISHED)}\n<b>bold</b> claim,RAVDESS,emotion,random clips,94,accuracy,"a, b"\n'
    )
    settings = StudySettings(
        table=root / "results.csv",
        runs=root / "runs",
        published=root / "published.csv",
        images={"small": {"corpus": "synthetic"}},
        systems={
            "net": {"verb": "finetune", "weights": "none"},
            "svm": {"verb": "classical", "augmented": {"copies": "all"}},
        },
        protocols={"group-kfold": [0, 1], "random-leaky": [0]},
    )
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(plots, "_save", lambda _figure, path: write_bytes(path, b"not drawn"))  # nobody looks at them
    index, _spec = read_index(world.images)
    untouched = index[index["copy"] == 0]
    table, folders = pd.DataFrame(columns=list(COLUMNS)), {}
    for number, run in enumerate(grid(settings)):
        folder = folders[run.key] = settings.runs / run.name / RESULT
        if run.system == "net":
            shutil.copytree(world.checkpoint, folder)
        speakers = sorted(set(untouched["speaker"]))[4 * run.fold : 4 * run.fold + 4]
        clips = clip_columns(untouched[untouched["speaker"].isin(speakers)].assign(label=lambda one: one["emotion"]))
        generator = np.random.default_rng(number)
        right = generator.random(len(clips)) < (0.9 if run.protocol == "random-leaky" else 0.5)
        clips["predicted"] = np.where(right, clips["label"], generator.choice(EMOTIONS, len(clips)))
        conditions = {
            "checkpoint": run.name,
            "part": "test",
            "fold": run.fold,
            "leak": "",
            "speakers_heard_in_training": [],
        }
        report = write_report(folder / "evaluation-test", conditions, clips, EMOTIONS, rounds=50)
        row = Row(
            system=run.system,
            augmented=run.augmented,
            backbone=run.verb,
            config=run.config,
            corpus="synthetic",
            labels=run.labels,
            protocol=run.protocol,
            fold=run.fold,
            seed=run.seed,
            epoch=None,
            valid_uar=0.5,
            test_wa=None,
            test_uar=report["uar"]["value"],
            test_f1=None,
            parameters=None,
            train_s=12.0,
            clip_ms=3.0,
            transductive=False,
        )
        table = with_rows(table, [row])
    monkeypatch.undo()
    return settings, table, folders


@pytest.fixture(scope="module")
def page(study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]]) -> Path:
    """Its page."""
    settings, table, folders = study
    _write(settings, table, folders)
    return settings.page


def test_scores_are_pooled_over_all_folds(study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]]) -> None:
    settings, table, folders = study
    found = {(one.name, one.protocol): one for one in entries(settings, table, folders)}
    assert set(found) == {
        (name, protocol) for name in ("net", "svm", "svm, augmented") for protocol in ("group-kfold", "random-leaky")
    }
    for entry in found.values():
        tables = [pd.read_csv(folder / "evaluation-test" / "predictions.csv") for folder in entry.folders]
        both = pd.concat(tables)
        assert len(tables) == len(entry.rows) == (2 if entry.protocol == "group-kfold" else 1)
        assert entry.uar == pytest.approx(recall_score(both["label"], both["predicted"], average="macro"), abs=1e-4)
        assert entry.report is not None and len(entry.report["speakers"]) == 4 * len(tables)


def test_the_page_shows_the_mean_score_when_run_folders_are_missing(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    gone = dict.fromkeys(folders, tmp_path / "gone")
    moved = replace(settings, report=tmp_path / "page.html", runs=tmp_path)
    _write(moved, table, gone)
    text = (tmp_path / "page.html").read_text()
    mean = table[(table["system"] == "net") & (table["protocol"] == "group-kfold")]["test_uar"].mean()
    assert f"<strong>{mean:.3f}</strong>" in text


def test_the_page_is_self_contained_and_escapes_its_inputs(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"src=[\"'](?!data:)", text)
    assert {name for name, _ in re.findall(r"<(\w+)[^>]* href=[\"']([^\"'#][^\"']*)", text)} <= {"a"}
    assert "@import" not in text and "url(" not in re.sub(r"url\(#[^)]*\)", "", text)
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold&lt;/b&gt; claim" in text
    for heading in ("Leaderboard", "Published figures", "Recall by class", "UAR by test speaker", "Confusion matrices"):
        assert f">{heading}</h2>" in text
    assert text.count("<svg") > 8 and text.count("data:image/png;base64,") == len(EMOTIONS) * 2


def test_the_lead_paragraph_names_the_best_system_on_validation_speakers(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    for favoured in ("net", "svm"):
        shown = table.assign(valid_uar=[0.9 if name == favoured else 0.1 for name in table["system"]])
        _write(replace(settings, report=tmp_path / "page.html"), shown, folders)
        lead = re.search(r'<p class="lead">(.*?)</p>', (tmp_path / "page.html").read_text(), re.DOTALL)
        assert lead is not None and f"validation speakers, {favoured}" in lead[1] and "(group-kfold)" in lead[1]
    leaky = replace(settings, protocols={"random-leaky": [0]}, report=tmp_path / "page.html")
    _write(leaky, table, folders)
    text = (tmp_path / "page.html").read_text()
    assert '<p class="lead">' not in text and "No figure on this page is for new speakers" in text
    assert "by test speaker" not in text.lower() and "#speakers" not in text


def test_an_incomplete_system_is_marked_and_cannot_lead(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    missing = (table["system"] == "net") & (table["fold"] == 1)
    shown = table.assign(valid_uar=[0.9 if name == "net" else 0.1 for name in table["system"]])[~missing]
    _write(replace(settings, report=tmp_path / "page.html"), shown, folders)
    text = (tmp_path / "page.html").read_text()
    assert "1 of 2</span>" in text and "validation speakers, svm" in text
    _write(replace(settings, report=tmp_path / "page.html"), shown[shown["fold"] == 0], folders)
    assert "No system has finished all its\n" in (tmp_path / "page.html").read_text()


def test_no_system_is_ranked_first_on_test_scores_alone(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    page = tmp_path / "page.html"
    _write(replace(settings, report=page), table.assign(valid_uar=float("nan")), folders)
    assert "so none is ranked first: choosing one by its test" in page.read_text()
    alone = replace(settings, report=page, systems={"svm": {"verb": "classical"}})
    _write(alone, table.assign(valid_uar=float("nan")), folders)
    assert re.search(r'<p class="lead">svm reaches', page.read_text())


def test_ensembles_and_transductive_results_have_separate_rows(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    page = tmp_path / "page.html"
    row: dict[str, Any] = dict.fromkeys(pooled.COLUMNS, 0.5) | {"system": "net", "images": "small", "seeds": 3}
    kinds = [row | {"protocol": "random-leaky", "kind": kind} for kind in ("single", "ensemble", "transductive")]
    write_page(replace(settings, report=page), list(entries(settings, table, folders)), pd.DataFrame(kinds))
    section = page.read_text().partition('<h2 id="pooled">')[2].partition("<h2")[0]
    assert re.findall(r'<td class="text">(single|ensemble|transductive)</td>', section) == ["ensemble", "transductive"]
    assert section.count('<td class="text leaky">random-leaky</td>') == 2


def test_each_rendering_of_a_system_has_its_own_row(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    both = replace(settings, images={**settings.images, "large": {"corpus": "synthetic", "copies": 1}})
    keys = {run.key for run in grid(both)} - set(folders)
    twin = {run.name.replace("-", ""): run for run in grid(both) if run.images == "large"}
    rows = [
        table[(table["system"] == run.system) & (table["protocol"] == run.protocol) & (table["fold"] == run.fold)]
        .iloc[:1]
        .assign(config=run.config)
        for run in twin.values()
    ]
    assert keys == {run.key for run in twin.values()}
    gone = {**folders, **dict.fromkeys(keys, tmp_path / "gone")}
    found = list(entries(both, pd.concat([table, *rows]), gone))
    assert {one.name for one in found} == {
        f"{system} on {images}{augmented}"
        for images in ("small", "large")
        for system, augmented in (("net", ""), ("svm", ""), ("svm", ", augmented"))
    }
    _write(replace(both, report=tmp_path / "page.html"), pd.concat([table, *rows]), gone)
    for name in ("net on small", "net on large"):
        assert f"<tr><td>{name}</td>" in (tmp_path / "page.html").read_text()


def test_speakers_and_labels_that_look_like_numbers_or_na_stay_strings(tmp_path: Path) -> None:
    for number, (speaker, label) in enumerate((("NA", "1"), ("01", "None"))):
        clips = pd.DataFrame(
            {"clip_id": ["a", "b"], "path": "", "corpus": "folder", "speaker": speaker, "gender": None, "label": label}
        ).assign(predicted=["1", "None"])
        conditions = {"checkpoint": "x", "part": "test", "leak": "", "speakers_heard_in_training": []}
        write_report(tmp_path / str(number) / "evaluation-test", conditions, clips, ("1", "None"), rounds=5)
    report = _pooled((tmp_path / "0", tmp_path / "1"))
    assert report is not None and set(report["speakers"]) == {"NA", "01"}
    assert report["confusion"] == [[1, 1], [1, 1]]


def test_an_invalid_or_missing_table_of_published_figures_is_rejected(
    study: tuple[StudySettings, pd.DataFrame, dict[Any, Path]], tmp_path: Path
) -> None:
    settings, table, folders = study
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(EvaluationError, match=r"other\.csv: must have the columns system, corpus"):
        _write(replace(settings, published=tmp_path / "other.csv"), table, folders)
    with pytest.raises(EvaluationError, match=r"none\.csv: cannot be read"):
        _write(replace(settings, published=tmp_path / "none.csv"), table, folders)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [1360, 390])
def test_tables_sort_with_the_keyboard_and_the_page_fits_the_viewport(page: Path, width: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800})
        asked, wrong = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        board = tab.locator("table.sortable").first

        def column(number: int) -> list[str]:
            return board.locator(f"tbody tr > :nth-child({number})").all_inner_texts()

        assert column(3) == sorted(column(3), reverse=True)
        heading = board.locator("thead th").nth(2)
        heading.locator("button").focus()
        tab.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        tab.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"
        assert column(3) == sorted(column(3))
        board.locator("thead th button").first.click()
        assert column(1) == sorted(column(1))
        browser.close()
    assert not wrong
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("train_s", [(0.0, 0.5, 0.0), (0.0, 0.0, 0.0), (0.1, 2.0, 900.0)])
def test_the_cost_plot_is_rendered_with_training_times_near_zero(train_s: tuple[float, ...]) -> None:
    """Trainings that took next to no time; matplotlib would warn of a panel without room."""
    here = {"corpus": "c", "labels": "l", "protocol": "p"}
    systems = [
        SimpleNamespace(
            **here, rows=pd.DataFrame({"clip_ms": [1.0], "train_s": [seconds]}), uar=uar, name=f"system{uar}"
        )
        for seconds, uar in zip(train_s, (0.3, 0.8, 0.31), strict=True)
    ]
    svg = str(costs(("c", "l", "p"), systems)["svg"])  # type: ignore[arg-type]
    assert svg.count("system0.3<") + svg.count("system0.3 -->") >= 1
