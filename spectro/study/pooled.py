"""What a study's systems say of all clips: single runs, seeds averaged, and networks that adapted to a voice.

Each kind of answer is told apart: `single` is what one network says of a voice that is new to it, the figures of all
seeds together; `ensemble` averages the probabilities of a fold's seeds; `average` averages those of several systems,
all seeds of each; `transductive` is said after the batch norms have seen all clips of a speaker without their labels.

Systems are compared with the study's first one on the same speakers, by a bootstrap that draws speakers for both at
once: what all systems find hard in a voice falls out of the difference.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from spectro.corpora.splits import LEAKS
from spectro.errors import EvaluationError, SpectroError
from spectro.evaluate import plots
from spectro.evaluate.intervals import gain
from spectro.evaluate.report import (
    ADAPTED_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    matrices,
    probabilities_in,
    with_probabilities,
    without_temperature,
    write_report,
)
from spectro.files import fingerprint, printable, read_json, write_bytes
from spectro.metrics import Floats, figures
from spectro.rendering.index import read_index
from spectro.study.results import Entry, read_predictions, report_folder
from spectro.study.settings import StudySettings

COLUMNS = (
    "system",
    "augmented",
    "images",
    "config",
    "corpus",
    "labels",
    "protocol",
    "part",
    "kind",
    "folds",
    "seeds",
    "runs",
    "asked",
    "clips",
    "mean_uar",
    "sd_of_seeds",
    "uar",
    "low",
    "high",
    "gain",
    "gain_low",
    "gain_high",
    "wa",
    "f1",
    "ece",
    "nll",
    "ece_untempered",
    "nll_untempered",
)
CALIBRATION = ("ece", "nll")


class Answers(NamedTuple):
    """What a system's runs said of all clips, in one way.

    Args:
        kind: `single`, `ensemble`, `average`, `transductive` or `transductive ensemble`.
        predicted: predictions, with the columns `fold` and `seed`, which is empty where seeds were averaged.
        labels: names of the labels.
        untempered: what the probabilities would be without their temperature, float64 of shape (clips, labels), or
            None where they have none.
    """

    kind: str
    predicted: pd.DataFrame
    labels: tuple[str, ...]
    untempered: Floats | None


def write_pooled(settings: StudySettings, found: list[Entry]) -> pd.DataFrame:
    """Write the pooled table beside the study's table, and a report of each kind of answer into `RUNS/pooled`.

    `mean_uar` is the mean over folds, then seeds; `uar` that of all clips together, with `low` and `high` by the
    bootstrap over speakers. `gain` is what a system's UAR is more than that of the study's first system, by the same
    kind of answers; for the first system itself, what an ensemble or adaptation is more than its single networks. Of
    several forms of the first system (with augmentation, on another rendering) the first leads.
    Gains, and deviations of seeds, are told of systems whose runs are all done. Validation speakers tell nothing of
    calibrated probabilities, since the temperature was fitted on them.

    Args:
        settings: the study.
        found: its systems. Of those whose predictions are gone, the rows that the table has are kept; those without
            probabilities are left out.

    Returns:
        the rows of these systems, with the columns of `COLUMNS`.

    Raises:
        EvaluationError: the networks of a fold that are averaged were measured on different clips.
    """
    rows: list[dict[str, Any]] = []
    first: dict[tuple[str, ...], Answers] = {}
    leaders: dict[tuple[str, ...], tuple[str, bool | None, str]] = {}
    for entry in found:
        for one in answers(entry):
            row = _row(settings, entry, one)
            place = (entry.corpus, entry.labels, entry.protocol)
            leads = (
                entry.system == settings.chosen_systems()[0][0]
                and entry.complete
                and leaders.setdefault(place, entry.key) == entry.key
            )
            own = (*place, one.kind)
            base = first.get((*place, "single") if leads else own)
            if leads:
                first.setdefault(own, one)
            if base is not None and entry.complete:
                row |= _gain(base, one)
            rows.append(row)
    averages = [entry for name, systems in settings.chosen_averages() for entry in _averages(name, systems, found)]
    for entry, average in averages:
        base = first.get((entry.corpus, entry.labels, entry.protocol, "single"))
        if average is not None:
            rows.append(_row(settings, entry, average) | (_gain(base, average) if base is not None else {}))
    found = [*found, *(entry for entry, _answers in averages)]
    table = _with_kept(settings, found, pd.DataFrame(rows, columns=list(COLUMNS)))
    if len(table):
        write_bytes(settings.pooled, table.to_csv(index=False, float_format="%.4f").encode())
    configs = {str(one.rows["config"].iloc[0]) for one in found}
    return table[table["config"].isin(configs) & (table["part"] == settings.part)]


def _with_kept(settings: StudySettings, found: list[Entry], table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the rows that the file has of systems, or parts, that are not in it."""
    if not settings.pooled.exists():
        return table
    try:
        known = pd.read_csv(settings.pooled, dtype={"config": str})
    except ValueError:  # no CSV at all
        known = pd.DataFrame()
    if tuple(known.columns) != COLUMNS:
        raise EvaluationError(f"{printable(settings.pooled)}: is not a table of pooled figures; name another --report")
    current = {str(one.rows["config"].iloc[0]) for one in found}
    new = set(zip(table["config"], table["part"], strict=True))
    keep = [
        (config, part) not in new and (part != settings.part or config in current)
        for config, part in zip(known["config"], known["part"], strict=True)
    ]
    kept = known[keep]
    return pd.concat([kept, table], ignore_index=True) if len(kept) and len(table) else kept if len(kept) else table


def _averages(name: str, wanted: list[str], found: list[Entry]) -> Iterator[tuple[Entry, Answers | None]]:
    """Yield what the average of several systems said, on each corpus, label scheme and protocol that all have done.

    Args:
        name: name of the average.
        wanted: its systems.
        found: the study's systems.

    Yields:
        an entry for the average, and what it said; None in its place if predictions are gone.

    Raises:
        EvaluationError: they were measured on different clips.
    """
    places: dict[tuple[str, ...], list[Entry]] = {}
    for entry in found:
        if entry.system in wanted and entry.complete:
            places.setdefault((entry.corpus, entry.labels, entry.protocol), []).append(entry)
    for members in places.values():
        if {entry.system for entry in members} != set(wanted):
            continue
        config = fingerprint(sorted(str(entry.rows["config"].iloc[0]) for entry in members))
        whole = replace(
            members[0],
            system=name,
            augmented=None,
            images="+".join(dict.fromkeys(entry.images for entry in members)),
            rows=pd.concat([entry.rows for entry in members], ignore_index=True).assign(config=config),
            folders=tuple(folder for entry in members for folder in entry.folders),
            report=None,
            asked=sum(entry.asked for entry in members),
        )
        told = [one for entry in members if (one := _tables(entry, PREDICTIONS_FILE)) is not None]
        if len(told) < len(members):
            yield whole, None
            continue
        joined = _joined(told)
        mean, raw_mean = _averaged(whole, joined.tables, joined.before, joined.labels)
        yield whole, Answers("average", mean, joined.labels, raw_mean if joined.tempered else None)


class _Told(NamedTuple):
    """What a system's runs said, run by run.

    Args:
        labels: names of the labels.
        tables: predictions, with the columns `fold` and `seed`.
        before: probabilities without their temperature, float64 of shape (clips, labels), of each run.
        tempered: whether every run tells its temperature.
    """

    labels: tuple[str, ...]
    tables: list[pd.DataFrame]
    before: list[Floats]
    tempered: bool


def _joined(told: list[_Told]) -> _Told:
    if len({one.labels for one in told}) > 1:
        raise EvaluationError("systems with different labels cannot be averaged")
    return _Told(
        told[0].labels,
        [table for one in told for table in one.tables],
        [before for one in told for before in one.before],
        all(one.tempered for one in told),
    )


def _tables(entry: Entry, file: str) -> _Told | None:
    """Return what a system's runs said; None if any of it is gone, or has no probabilities."""
    places = list(zip(entry.rows["fold"], entry.rows["seed"], entry.folders, strict=True))
    reports = [read_json(report_folder(folder, entry.part) / METRICS_FILE) for _fold, _seed, folder in places]
    if entry.report is None or "calibration" not in reports[0]:
        return None
    if not all((report_folder(folder, entry.part) / file).exists() for _fold, _seed, folder in places):
        return None
    labels, temperatures = tuple(reports[0]["labels"]), [one.get("temperature") for one in reports]
    tables = [read_predictions(folder, file, entry.part).assign(fold=f, seed=str(s)) for f, s, folder in places]
    before = [
        without_temperature(probabilities_in(table, labels), temperature or 1.0)
        for table, temperature in zip(tables, temperatures, strict=True)
    ]
    return _Told(labels, tables, before, None not in temperatures)


def answers(entry: Entry) -> Iterator[Answers]:
    """Yield what a system's runs said, by kind; nothing if predictions are gone, or have no probabilities."""
    folds = list(entry.rows["fold"])
    averaged = entry.complete and all(folds.count(fold) > 1 for fold in folds)
    for name, file in (("", PREDICTIONS_FILE), ("transductive", ADAPTED_FILE)):
        if (told := _tables(entry, file)) is None:
            continue
        raw = np.concatenate(told.before) if told.tempered else None
        yield Answers(name or "single", pd.concat(told.tables, ignore_index=True), told.labels, raw)
        if averaged:
            mean, raw_mean = _averaged(entry, told.tables, told.before, told.labels)
            yield Answers(f"{name} ensemble".strip(), mean, told.labels, raw_mean if told.tempered else None)


def _averaged(
    entry: Entry, tables: list[pd.DataFrame], before: list[Floats], labels: tuple[str, ...]
) -> tuple[pd.DataFrame, Floats]:
    """Return the mean over seeds of the probabilities of each fold's clips, and of those before the temperature."""
    means, raws = [], []
    for fold in dict.fromkeys(int(table["fold"].iloc[0]) for table in tables):
        own = [(table, raw) for table, raw in zip(tables, before, strict=True) if int(table["fold"].iloc[0]) == fold]
        first = own[0][0]
        if any(list(table["clip_id"]) != list(first["clip_id"]) for table, _raw in own):
            raise EvaluationError(f"{entry.name}: the networks of fold {fold} were measured on different clips")
        means.append(
            with_probabilities(first.assign(seed=""), labels, np.mean([probabilities_in(t, labels) for t, _ in own], 0))
        )
        raws.append(np.mean([raw for _table, raw in own], axis=0))
    return pd.concat(means, ignore_index=True), np.concatenate(raws)


def _row(settings: StudySettings, entry: Entry, found: Answers) -> dict[str, Any]:
    predicted, labels = found.predicted, found.labels
    conditions = {
        "checkpoint": f"{entry.name}, {found.kind}",
        "part": entry.part,
        "protocol": entry.protocol,
        "folds": sorted({int(fold) for fold in entry.rows["fold"]}),
        "seeds": sorted({int(seed) for seed in entry.rows["seed"]}),
        "leak": LEAKS.get(entry.protocol, ""),
        "speakers_heard_in_training": [],
    }
    name = f"{entry.name}-{entry.labels}-{entry.protocol}-{entry.part}-{found.kind}"
    out = settings.runs / "pooled" / settings.page.stem / name.replace(", ", "-").replace(" ", "-")
    report = write_report(out, conditions, predicted, labels, untempered=found.untempered)
    _gallery(settings, entry, report, predicted, out / "gallery.png")
    of_run = {place: _uar(own, labels) for place, own in predicted.groupby(["seed", "fold"], sort=False)}
    of_seed = pd.Series(of_run).groupby(level=0).mean()
    told = report["calibration"] if entry.part == "test" else {**report["calibration"], "probabilities": {}}
    return {
        "system": entry.system,
        "augmented": entry.augmented,
        "images": entry.images,
        "config": str(entry.rows["config"].iloc[0]),
        "corpus": entry.corpus,
        "labels": entry.labels,
        "protocol": entry.protocol,
        "part": entry.part,
        "kind": found.kind,
        "folds": len(conditions["folds"]),
        "seeds": len(conditions["seeds"]),
        "runs": len(entry.rows),
        "asked": entry.asked,
        "clips": len(predicted),
        "mean_uar": float(of_seed.mean()),
        "sd_of_seeds": float(of_seed.std()) if len(of_seed) > 1 and entry.complete else None,
        "uar": report["uar"]["value"],
        "low": report["uar"]["interval"][0],
        "high": report["uar"]["interval"][1],
        "wa": report["wa"]["value"],
        "f1": report["f1"]["value"],
        **{name: told["probabilities"].get(name) for name in CALIBRATION},
        **{f"{name}_untempered": told.get("without_temperature", {}).get(name) for name in CALIBRATION},
    }


def _gain(base: Answers, found: Answers) -> dict[str, float | None]:
    """Return the difference of two answers' UAR, with its interval; nothing where they are not of the same clips."""
    if set(base.predicted["clip_id"]) != set(found.predicted["clip_id"]):
        return {}
    return gain(matrices(base.predicted, base.labels), matrices(found.predicted, found.labels))


def _uar(predicted: pd.DataFrame, labels: tuple[str, ...]) -> float:
    return figures(np.sum(list(matrices(predicted, labels).values()), axis=0)).uar


def _gallery(
    settings: StudySettings, entry: Entry, report: dict[str, Any], predicted: pd.DataFrame, path: Path
) -> None:
    """Draw some of the clips, of answers that have each clip once, while the rendering is there."""
    folder = settings.runs / "images" / entry.images
    try:
        index, _spec = read_index(folder)
    except SpectroError:
        return
    images = index[index["copy"] == 0].set_index("clip_id")["image"]
    if predicted["clip_id"].is_unique and predicted["clip_id"].isin(images.index).all():
        plots.gallery(report, predicted, [folder / images[name] for name in predicted["clip_id"]], path)
