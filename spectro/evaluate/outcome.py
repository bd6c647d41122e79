"""What every system's predictions become: figures, a table and pictures, in one form for all, so that they compare."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from spectro.corpora.splits import speaker_names
from spectro.errors import AudioError
from spectro.evaluate import plots
from spectro.evaluate.metrics import summarise
from spectro.files import write_bytes, write_json

METRICS_FILE, PREDICTIONS_FILE, RUN_FILE = "metrics.json", "predictions.csv", "run.json"
TIMED = 20
"""Clips that are classified one by one to see how long it takes."""


def told(clips: pd.DataFrame) -> pd.DataFrame:
    """Return what a table of predictions tells of its clips."""
    return clips[["clip_id", "path", "corpus", "speaker", "gender", "label"]].copy()


def write_report(
    out: Path,
    conditions: dict[str, Any],
    predicted: pd.DataFrame,
    labels: tuple[str, ...],
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `metrics.json`, `predictions.csv`, `confusion.png` and `recall.png`.

    Args:
        out: where to.
        conditions: under which the figures were had, as JSON values; `checkpoint`, `part`, `leak` and
            `speakers_heard_in_training` are drawn into the pictures.
        predicted: what `told` returns, with `predicted` and, where the system gives them, `confidence` and
            `p_<label>`.
        labels: names of the labels, in order.
        rounds: samples of the bootstrap over speakers.
        seed: seed of the bootstrap.

    Returns:
        the content of `metrics.json`.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    report = conditions | summarise(
        targets=np.array([numbers[label] for label in predicted["label"]], dtype=np.int64),
        predicted=np.array([numbers[label] for label in predicted["predicted"]], dtype=np.int64),
        speakers=speaker_names(predicted).fillna("unknown").to_numpy(str),
        genders=predicted["gender"].fillna("").to_numpy(str),
        labels=labels,
        rounds=rounds,
        seed=seed,
    )
    write_json(out / METRICS_FILE, report)
    write_bytes(out / PREDICTIONS_FILE, predicted.to_csv(index=False, float_format="%.6g").encode())
    plots.confusion(report, out / "confusion.png")
    plots.recall(report, out / "recall.png")
    return report


def clip_ms(classify: Callable[[Path], Any], recordings: Iterable[str]) -> float | None:
    """Return how long a system takes from a recording to its label, one at a time, in milliseconds.

    Args:
        classify: takes a recording's path.
        recordings: paths; the first 20 are timed, after one that warms up.

    Returns:
        the median; None where the recordings are gone or cannot be used.
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
