"""The results of a study, system by system: its rows and predictions, pooled over folds and seeds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from spectro.corpora.splits import Part
from spectro.corpora.table import VOTES
from spectro.evaluate.report import METRICS_FILE, PREDICTIONS_FILE, figures_of
from spectro.files import read_json
from spectro.outputs import text_of
from spectro.study.grid import Run, grid
from spectro.study.settings import StudySettings

Folders = dict[tuple[str, int, int], Path]


class Place(NamedTuple):
    """Where systems are compared: a corpus (several are joined by +), a label scheme and a protocol."""

    corpus: str
    labels: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A system, with or without augmentation, on one corpus, label scheme and protocol.

    Args:
        system: its name.
        augmented: whether augmentation was on; None if the system has no options for it.
        corpus: the corpora, joined by +.
        labels: label scheme.
        protocol: protocol.
        rows: its rows of the study's table.
        report: figures of all its predictions, as `summarise` returns them; None if the predictions are gone.
        folders: result folders of its runs.
        images: name of its rendering.
        asked: number of its runs in the study's grid.
        one_of_several: whether the study has several renderings.
        part: the speakers of its report.
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
    asked: int
    one_of_several: bool = False
    part: Part = "test"

    @property
    def key(self) -> tuple[str, bool | None, str]:
        """Key that identifies it among the systems of a place."""
        return self.system, self.augmented, self.images

    @property
    def place(self) -> Place:
        """Where it is compared with others."""
        return Place(self.corpus, self.labels, self.protocol)

    @property
    def config(self) -> str:
        """Fingerprint of its configuration."""
        return str(self.rows["config"].iloc[0])

    @property
    def name(self) -> str:
        """Its name, whether augmentation was on, and its rendering if there are several."""
        on = f" on {self.images}" if self.one_of_several else ""
        return f"{self.system}{on}{', augmented' if self.augmented else ''}"

    @property
    def complete(self) -> bool:
        """Whether all its runs are done."""
        return len(self.rows) == self.asked

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of UAR over speakers; None if there is only one speaker, or the predictions are gone."""
        if self.report is None or len(self.report["speakers"]) < 2:
            return None
        low, high = self.report["uar"]["interval"]
        return low, high

    @property
    def uar(self) -> float:
        """Pooled UAR; the mean over runs if the predictions are gone."""
        return float(self.report["uar"]["value"]) if self.report else float(self.rows[f"{self.part}_uar"].mean())


def entries(settings: StudySettings, table: pd.DataFrame, folders: Folders) -> Iterator[Entry]:
    """Yield the systems of the study's grid that have rows in the table, pooled over folds and seeds.

    Figures are those of the test speakers, or of the validation speakers in a study with `test: false`.

    Args:
        settings: the study.
        table: its table.
        folders: result folder of each run, by the run's key.
    """
    groups: dict[tuple[Any, ...], list[tuple[Run, Any]]] = {}
    asked: Counter[tuple[Any, ...]] = Counter()
    plain = table[~table["transductive"].astype(bool)]
    rows = {(str(row["config"]), int(row["fold"]), int(row["seed"])): row for row in plain.to_dict("records")}
    for run in grid(settings):
        row = rows.get(run.key)
        place = (run.system, run.augmented, run.labels, run.protocol, run.images)
        asked[place] += 1
        if row is not None and not pd.isna(row[f"{settings.part}_uar"]):
            groups.setdefault(place, []).append((run, row))
    for place, members in groups.items():
        system, augmented, labels, protocol, images = place
        places = tuple(folders[run.key] for run, _row in members)
        yield Entry(
            system=system,
            augmented=augmented,
            corpus=str(members[0][1]["corpus"]),
            labels=labels,
            protocol=protocol,
            rows=pd.DataFrame([row for _run, row in members]),
            report=_pooled(places, settings.part),
            folders=places,
            images=images,
            asked=asked[place],
            one_of_several=len(settings.images) > 1,
            part=settings.part,
        )


def _pooled(folders: tuple[Path, ...], part: Part = "test") -> dict[str, Any] | None:
    """Return the figures of a system's runs, all predictions together; None if any are gone."""
    tables, labels = [], tuple[str, ...]()
    for folder in folders:
        path = report_folder(folder, part)
        metrics = read_json(path / METRICS_FILE)
        if metrics is None or not (path / PREDICTIONS_FILE).exists():
            return None
        labels = tuple(metrics["labels"])
        tables.append(read_predictions(folder, part=part))
    predicted = pd.concat(tables, ignore_index=True)
    return figures_of(predicted, labels)


def report_folder(folder: Path, part: Part = "test") -> Path:
    """Return the folder of a run's report on a part, inside the result folder."""
    return folder / f"evaluation-{part}"


def read_predictions(folder: Path, file: str = PREDICTIONS_FILE, part: Part = "test") -> pd.DataFrame:
    """Return a run's predictions on a part.

    Columns other than probabilities and votes are read as text, because names may look like numbers or missing values.
    """
    table = pd.read_csv(report_folder(folder, part) / file, dtype=str, keep_default_na=False)
    table = table.assign(**{name: table[name].map(text_of) for name in table.columns if name != "path"})
    probabilities = {name: float for name in table.columns if name == "confidence" or name.startswith("p_")}
    votes = {name: pd.to_numeric(table[name], errors="coerce") for name in table.columns if name.startswith(VOTES)}
    return table.assign(speaker=table["speaker"].replace("", "unknown"), **votes).astype(probabilities)
