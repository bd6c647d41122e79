"""Write the report of any system's predictions: figures, a table and plots, in one format, so systems compare."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import softmax

from spectro.corpora.labels import votes_for
from spectro.corpora.splits import PARTS, speaker_names
from spectro.corpora.table import VOTES
from spectro.errors import AudioError
from spectro.evaluate import plots
from spectro.evaluate.intervals import by_group, calibration, summarise
from spectro.evaluate.listeners import listeners
from spectro.files import read_json, write_bytes, write_json
from spectro.metrics import Counts, Floats
from spectro.model.metadata import Figures, HeldOut
from spectro.outputs import table_bytes

METRICS_FILE, PREDICTIONS_FILE, RUN_FILE = "metrics.json", "predictions.csv", "run.json"
ADAPTED_FILE = "predictions-transductive.csv"
REPORT_FILES = (
    METRICS_FILE,
    PREDICTIONS_FILE,
    ADAPTED_FILE,
    "confusion.png",
    "recall.png",
    "reliability.png",
    "gallery.png",
)
"""The files that a report may have."""
TIMED = 20
"""Clips that are classified one by one to measure the time per clip."""
AGES = (30, 45, 60)
"""The lowest age, in years, of every age group but the youngest."""


def clip_columns(clips: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that describe clips in a table of predictions: speaker and, where known, listeners' votes."""
    columns = ["clip_id", "path", "corpus", "speaker", "gender", "label"]
    further = [name for name in map(str, clips) if name in ("age", "race", "ethnicity") or name.startswith(VOTES)]
    return clips[[*columns, *(name for name in further if clips[name].notna().any())]].copy()


def write_report(
    out: Path,
    conditions: dict[str, Any],
    predicted: pd.DataFrame,
    labels: tuple[str, ...],
    *,
    untempered: Floats | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `metrics.json`, `predictions.csv`, `confusion.png`, `recall.png`; with probabilities, `reliability.png`.

    Args:
        out: folder of the report.
        conditions: conditions of the evaluation, as JSON values; `checkpoint`, `part`, `leak` and
            `speakers_heard_in_training` appear in the plots' titles.
        predicted: the table that `clip_columns` returns, with `predicted` and, if the system gives them, `confidence`
            and `p_<label>`.
        labels: names of the labels, in order.
        untempered: the probabilities without the calibrating temperature, float64 of shape (clips, labels), reported
            beside the calibrated ones; None if there was no temperature.
        rounds: number of samples of the bootstrap over speakers.
        seed: seed of the bootstrap.

    Returns:
        the content of `metrics.json`.
    """
    report = conditions | figures_of(predicted, labels, rounds, seed)
    if f"p_{labels[0]}" in predicted:
        known = {"probabilities": probabilities_in(predicted, labels), "without_temperature": untempered}
        targets = _numbers(predicted["label"], labels)
        report["calibration"] = {name: calibration(one, targets) for name, one in known.items() if one is not None}
        plots.reliability(report, out / "reliability.png")
    write_json(out / METRICS_FILE, report)
    write_predictions(out / PREDICTIONS_FILE, predicted)
    plots.confusion(report, out / "confusion.png")
    plots.recall(report, out / "recall.png")
    return report


def is_report(folder: Path) -> bool:
    """Return whether a folder holds a report."""
    found = read_json(folder / METRICS_FILE)
    return isinstance(found, dict) and {"checkpoint", "part", "uar"} <= set(found)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds the results of a run that a study reads."""
    found = read_json(folder / RUN_FILE)
    return isinstance(found, dict) and {"backbone", "split", "training"} <= set(found)


def write_predictions(path: Path, predicted: pd.DataFrame) -> None:
    """Write a table of predictions."""
    write_bytes(path, table_bytes(predicted, "%.6g"))


def probabilities_in(predicted: pd.DataFrame, labels: tuple[str, ...]) -> Floats:
    """Return the probabilities of a table of predictions, float64 of shape (clips, labels)."""
    return predicted[[f"p_{label}" for label in labels]].to_numpy(np.float64)


def without_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return probabilities, float64 of shape (clips, labels), as they were before calibration with a temperature."""
    logits = temperature * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    before: Floats = softmax(logits, axis=1)
    return before


def with_probabilities(clips: pd.DataFrame, labels: tuple[str, ...], probabilities: Floats) -> pd.DataFrame:
    """Return a table of clips with the predictions from probabilities, float64 of shape (clips, labels)."""
    table = clips.assign(
        predicted=[labels[number] for number in probabilities.argmax(axis=1)], confidence=probabilities.max(axis=1)
    )
    for number, label in enumerate(labels):
        table[f"p_{label}"] = probabilities[:, number]
    return table


def figures_of(predicted: pd.DataFrame, labels: tuple[str, ...], rounds: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return `summarise` of a table of predictions and, if it has votes, agreement with listeners in `listeners`."""
    targets, answers = (_numbers(predicted[name], labels) for name in ("label", "predicted"))
    speakers = speaker_names(predicted).fillna("unknown").to_numpy(str)
    found = summarise(
        targets=targets,
        predicted=answers,
        speakers=speakers,
        genders=predicted["gender"].fillna("").to_numpy(str),
        groups=_groups(predicted),
        labels=labels,
        rounds=rounds,
        seed=seed,
    )
    agreed = listeners(votes_for(predicted, labels), answers, targets, speakers, rounds=rounds, seed=seed)
    return found | ({"listeners": agreed} if agreed else {})


def matrices(predicted: pd.DataFrame, labels: tuple[str, ...]) -> dict[str, Counts]:
    """Return the confusion matrices of a table of predictions, by speaker."""
    speakers = speaker_names(predicted).fillna("unknown").to_numpy(str)
    return by_group(
        _numbers(predicted["label"], labels), _numbers(predicted["predicted"], labels), speakers, len(labels)
    )


def _groups(predicted: pd.DataFrame) -> dict[str, npt.NDArray[np.str_]]:
    """Return groupings of speakers other than gender: the group of each clip by grouping, empty where unknown."""
    found = {name: predicted[name].fillna("").astype(str) for name in ("age", "race", "ethnicity") if name in predicted}
    if "age" in found:
        found["age"] = pd.to_numeric(found["age"], errors="coerce").map(_age_group, na_action="ignore").fillna("")
    return {name: groups.to_numpy(str) for name, groups in found.items()}


def _age_group(years: float) -> str:
    """Return the group that an age belongs to: `under 30`, `30 to 44`, `45 to 59`, `60 and over`."""
    edges = [edge for edge in AGES if edge <= years]
    if not edges:
        return f"under {AGES[0]}"
    above = [edge for edge in AGES if edge > years]
    return f"{edges[-1]} to {above[0] - 1}" if above else f"{edges[-1]} and over"


def _numbers(named: pd.Series, labels: tuple[str, ...]) -> Counts:
    return np.array([labels.index(label) for label in named], dtype=np.int64)


def clip_ms(classify: Callable[[Path], Any], recordings: Iterable[str]) -> float | None:
    """Return the time a system needs from one recording to its label, in milliseconds.

    Args:
        classify: classifies one recording, given its path.
        recordings: paths; the first 20 are timed one at a time, after one run to warm up.

    Returns:
        the median; None if the recordings are gone or cannot be used.
    """
    paths = [Path(path) for path in list(recordings)[:TIMED]]
    seconds: list[float] = []
    try:
        for path in [*paths[:1], *paths]:
            started = time.perf_counter()
            classify(path)
            seconds.append(time.perf_counter() - started)
    except AudioError:
        return None
    return round(median(seconds[1:]) * 1000, 2) if len(seconds) > 1 else None


def show_figures(split: HeldOut, metrics: dict[str, Figures]) -> None:
    """Print the figures of each part, and any leak.

    Args:
        split: the held-out speakers.
        metrics: figures by part.
    """
    for part in PARTS[1:]:
        if found := metrics.get(part):
            print(
                f"{part:>5} speakers {', '.join(split.speakers[part])}: UAR {found.uar:.3f}, "
                f"WA {found.wa:.3f}, F1 {found.f1:.3f} ({found.clips} clips)"
            )
    if split.leak:
        print(f"these figures leak: {split.leak}")
