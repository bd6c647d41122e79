"""What a study found, system by system: its rows and predictions, pooled over folds and seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectro.evaluate.grid import Run, StudySettings, grid
from spectro.evaluate.metrics import summarise
from spectro.evaluate.outcome import METRICS_FILE, PREDICTIONS_FILE
from spectro.files import read_json

Folders = dict[tuple[str, int, int], Path]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A system, with or without augmentation, on one corpus, label scheme and protocol.

    Args:
        system: its name.
        augmented: whether augmentation was on; None where the system does not say what it means.
        corpus: the corpora, joined by +.
        labels: label scheme.
        protocol: protocol.
        rows: its rows of the study's table.
        report: figures of all its predictions, as `summarise` returns them; None if they are gone.
        folders: where its runs left their results.
        images: name of its rendering.
    """

    system: str
    augmented: bool | None
    corpus: str
    labels: str
    protocol: str
    rows: pd.DataFrame
    report: dict[str, Any] | None
    folders: tuple[Path, ...]
    images: str

    @property
    def name(self) -> str:
        """Its name, and whether augmentation was on."""
        return f"{self.system}, augmented" if self.augmented else self.system

    @property
    def uar(self) -> float:
        """Pooled UAR on test speakers; where predictions are gone, the mean of the runs'."""
        return float(self.report["uar"]["value"]) if self.report else float(self.rows["test_uar"].mean())


def entries(settings: StudySettings, table: pd.DataFrame, folders: Folders) -> Iterator[Entry]:
    """Yield what the study's grid has in the table, with test figures, pooled over folds and seeds.

    Args:
        settings: the study.
        table: its table.
        folders: result folder of each run, by the run's key.
    """
    groups: dict[tuple[Any, ...], list[tuple[Run, Any]]] = {}
    rows = {(str(row["config"]), int(row["fold"]), int(row["seed"])): row for row in table.to_dict("records")}
    for run in grid(settings):
        row = rows.get(run.key)
        if row is not None and not pd.isna(row["test_uar"]):
            place = (run.system, run.augmented, row["corpus"], run.labels, run.protocol, run.images)
            groups.setdefault(place, []).append((run, row))
    for (system, augmented, corpus, labels, protocol, images), members in groups.items():
        places = tuple(folders[run.key] for run, _row in members)
        yield Entry(
            system=system,
            augmented=augmented,
            corpus=corpus,
            labels=labels,
            protocol=protocol,
            rows=pd.DataFrame([row for _run, row in members]),
            report=_pooled(places),
            folders=places,
            images=images,
        )


def _pooled(folders: tuple[Path, ...]) -> dict[str, Any] | None:
    """Return the figures of all predictions of a system's runs together; None if any are gone."""
    tables, labels = [], tuple[str, ...]()
    for folder in folders:
        path = folder / "evaluation-test"
        metrics = read_json(path / METRICS_FILE)
        if metrics is None or not (path / PREDICTIONS_FILE).exists():
            return None
        labels = tuple(metrics["labels"])
        tables.append(pd.read_csv(path / PREDICTIONS_FILE, dtype={"speaker": str, "gender": str}))
    predicted = pd.concat(tables, ignore_index=True)
    return summarise(
        targets=np.array([labels.index(label) for label in predicted["label"]], dtype=np.int64),
        predicted=np.array([labels.index(label) for label in predicted["predicted"]], dtype=np.int64),
        speakers=predicted["speaker"].fillna("unknown").to_numpy(str),
        genders=predicted["gender"].fillna("").to_numpy(str),
        labels=labels,
    )
