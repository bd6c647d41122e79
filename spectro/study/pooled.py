"""Pooled figures of a study's systems: single networks, averages, and networks adapted to a speaker.

`kind` tells the answers apart. `single` pools the predictions of single networks on speakers that are new to them, all
seeds together. `ensemble` averages the probabilities of a fold's seeds. `average` averages those of several systems,
all seeds of each. `transductive` predictions are made after the network is adapted to all clips of a speaker, without
labels.

Each system is compared with the study's first one on the same speakers. One bootstrap samples the speakers for both, so
that the difficulty of a speaker that all systems share cancels out of the difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from spectro.corpora.splits import LEAKS, Part
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
from spectro.study.results import Entry, Place, read_predictions, report_folder
from spectro.study.settings import StudySettings

Kind: TypeAlias = Literal[
    "single", "ensemble", "average", "transductive", "transductive ensemble", "transductive average"
]


AVERAGES: tuple[tuple[Kind, str], ...] = (("average", PREDICTIONS_FILE), ("transductive average", ADAPTED_FILE))


@dataclass(frozen=True, kw_only=True)
class PooledRow:
    """A row of the table of pooled figures.

    Args:
        system: name of the system, or of the average.
        augmented: whether augmentation was on; None if the system has no options for it.
        images: name of its rendering.
        config: fingerprint of its configuration.
        corpus: the corpora, joined by +.
        labels: label scheme.
        protocol: protocol.
        part: the speakers measured, `test` or `valid`.
        kind: kind of the answers; see the module.
        folds: number of folds.
        seeds: number of seeds.
        runs: number of finished runs.
        asked: number of runs in the study's grid.
        clips: number of predictions.
        mean_uar: UAR, mean over folds, then over seeds.
        sd_of_seeds: standard deviation of the seeds' UAR; None with one seed, or while runs are missing.
        uar: UAR of all clips together.
        low: lower end of its 95 % interval, by the bootstrap over speakers.
        high: upper end.
        gain: UAR minus that of the study's first system with the same kind of answers; for the first system itself,
            minus that of its single networks; for an average, minus that of the first system's single networks,
            adapted if those of the average are. None while runs are missing.
        gain_low: lower end of its 95 % interval.
        gain_high: upper end.
        wa: accuracy.
        f1: macro F1.
        ece: expected calibration error; None for validation speakers, on whom the temperature was fitted.
        nll: negative log-likelihood in nats; None for validation speakers.
        ece_untempered: expected calibration error without the temperature.
        nll_untempered: negative log-likelihood without the temperature.
    """

    system: str
    augmented: bool | None
    images: str
    config: str
    corpus: str
    labels: str
    protocol: str
    part: Part
    kind: Kind
    folds: int
    seeds: int
    runs: int
    asked: int
    clips: int
    mean_uar: float
    sd_of_seeds: float | None
    uar: float
    low: float
    high: float
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    wa: float
    f1: float
    ece: float | None
    nll: float | None
    ece_untempered: float | None
    nll_untempered: float | None


COLUMNS = tuple(one.name for one in fields(PooledRow))


class Answers(NamedTuple):
    """The predictions of a system's runs on all clips, of one kind.

    Args:
        kind: their kind.
        predicted: predictions, with the columns `fold` and `seed`; `seed` is empty where seeds were averaged.
        labels: names of the labels.
        untempered: probabilities without the temperature, float64 of shape (clips, labels); None if a run has no
            temperature.
    """

    kind: Kind
    predicted: pd.DataFrame
    labels: tuple[str, ...]
    untempered: Floats | None


def write_pooled(settings: StudySettings, found: list[Entry]) -> pd.DataFrame:
    """Write the table of pooled figures next to the study's table, and a report per kind of answers in `RUNS/pooled`.

    If the first system has several forms (with augmentation, on another rendering), the others are compared with its
    first form.

    Args:
        settings: the study.
        found: its systems. Rows that the table already has of systems whose predictions are gone are kept. Systems
            without probabilities are left out.

    Returns:
        the rows of these systems, with the columns of `PooledRow`.

    Raises:
        EvaluationError: the networks to be averaged on a fold were measured on different clips.
    """
    rows: list[PooledRow] = []
    first = settings.chosen_systems()[0].name
    leaders: dict[Place, tuple[str, bool | None, str]] = {}
    bases: dict[tuple[Place, Kind], Answers] = {}
    for entry in found:
        for one in answers(entry):
            leads = entry.system == first and entry.complete and leaders.setdefault(entry.place, entry.key) == entry.key
            base = bases.get((entry.place, "single" if leads else one.kind))
            if leads:
                bases.setdefault((entry.place, one.kind), one)
            rows.append(_row(settings, entry, one, base if entry.complete else None))
    averages = [entry for name, systems in settings.chosen_averages() for entry in _averages(name, systems, found)]
    for entry, kinds in averages:
        for one in kinds:
            like: Kind = "single" if one.kind == "average" else "transductive"
            rows.append(_row(settings, entry, one, bases.get((entry.place, like))))
    found = [*found, *(entry for entry, _kinds in averages)]
    table = _with_kept(settings, found, pd.DataFrame(rows, columns=list(COLUMNS)))
    if len(table):
        write_bytes(settings.pooled, table.to_csv(index=False, float_format="%.4f").encode())
    configs = {one.config for one in found}
    return table[table["config"].isin(configs) & (table["part"] == settings.part)]


def read_pooled(path: Path) -> pd.DataFrame:
    """Return a table of pooled figures; without rows if there is none.

    Raises:
        EvaluationError: the file is another.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        known = pd.read_csv(path, dtype={"config": str})
    except ValueError:  # no CSV at all
        known = pd.DataFrame()
    if tuple(known.columns) != COLUMNS:
        raise EvaluationError(f"{printable(path)}: is not a table of pooled figures; name another --report")
    return known


def _with_kept(settings: StudySettings, found: list[Entry], table: pd.DataFrame) -> pd.DataFrame:
    """Return the new rows, with the rows of the file whose system or part has no new row."""
    known = read_pooled(settings.pooled)
    current = {one.config for one in found}
    new = set(zip(table["config"], table["part"], strict=True))
    keep = [
        (config, part) not in new and (part != settings.part or config in current)
        for config, part in zip(known["config"], known["part"], strict=True)
    ]
    kept = known[keep]
    return pd.concat([kept, table], ignore_index=True) if len(kept) and len(table) else kept if len(kept) else table


def _averages(name: str, wanted: list[str], found: list[Entry]) -> Iterator[tuple[Entry, list[Answers]]]:
    """Yield the average of several systems, at each place where all of them are complete.

    Args:
        name: name of the average.
        wanted: its systems.
        found: the study's systems.

    Yields:
        an entry for the average, and its answers, kind by kind; none if predictions are gone.

    Raises:
        EvaluationError: they were measured on different clips.
    """
    places: dict[Place, list[Entry]] = {}
    for entry in found:
        if entry.system in wanted and entry.complete:
            places.setdefault(entry.place, []).append(entry)
    for members in places.values():
        if {entry.system for entry in members} != set(wanted):
            continue
        config = fingerprint(sorted(entry.config for entry in members))
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
        yield whole, [one for kind, file in AVERAGES if (one := _average_of(whole, members, kind, file)) is not None]


def _average_of(whole: Entry, members: list[Entry], kind: Kind, file: str) -> Answers | None:
    """Return the average of one kind of answers, read from a file of each run; None if any are gone."""
    runs = [one for entry in members if (one := _predictions(entry, file)) is not None]
    if len(runs) < len(members):
        return None
    joined = _joined(runs)
    mean, raw_mean = _averaged(whole, joined.tables, joined.before, joined.labels)
    return Answers(kind, mean, joined.labels, raw_mean if joined.tempered else None)


class _Predictions(NamedTuple):
    """The predictions of a system's runs, run by run.

    Args:
        labels: names of the labels.
        tables: predictions of each run, with the columns `fold` and `seed`.
        before: probabilities of each run without the temperature, float64 of shape (clips, labels).
        tempered: whether every run has a temperature.
    """

    labels: tuple[str, ...]
    tables: list[pd.DataFrame]
    before: list[Floats]
    tempered: bool


def _joined(systems: list[_Predictions]) -> _Predictions:
    if len({one.labels for one in systems}) > 1:
        raise EvaluationError("systems with different labels cannot be averaged")
    return _Predictions(
        systems[0].labels,
        [table for one in systems for table in one.tables],
        [before for one in systems for before in one.before],
        all(one.tempered for one in systems),
    )


def _predictions(entry: Entry, file: str) -> _Predictions | None:
    """Return the predictions of a system's runs; None if any are gone, or have no probabilities."""
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
    return _Predictions(labels, tables, before, None not in temperatures)


def answers(entry: Entry) -> Iterator[Answers]:
    """Yield a system's answers, kind by kind; none if predictions are gone, or have no probabilities."""
    folds = list(entry.rows["fold"])
    averaged = entry.complete and all(folds.count(fold) > 1 for fold in folds)
    kinds: tuple[tuple[Kind, Kind, str], ...] = (
        ("single", "ensemble", PREDICTIONS_FILE),
        ("transductive", "transductive ensemble", ADAPTED_FILE),
    )
    for single, ensemble, file in kinds:
        if (runs := _predictions(entry, file)) is None:
            continue
        raw = np.concatenate(runs.before) if runs.tempered else None
        yield Answers(single, pd.concat(runs.tables, ignore_index=True), runs.labels, raw)
        if averaged:
            mean, raw_mean = _averaged(entry, runs.tables, runs.before, runs.labels)
            yield Answers(ensemble, mean, runs.labels, raw_mean if runs.tempered else None)


def _averaged(
    entry: Entry, tables: list[pd.DataFrame], before: list[Floats], labels: tuple[str, ...]
) -> tuple[pd.DataFrame, Floats]:
    """Return the probabilities of each fold's clips, averaged over seeds, with and without the temperature."""
    means, raws = [], []
    for fold in dict.fromkeys(int(table["fold"].iloc[0]) for table in tables):
        own = [(table, raw) for table, raw in zip(tables, before, strict=True) if int(table["fold"].iloc[0]) == fold]
        first = own[0][0]
        if any(not table[["clip_id", "label"]].equals(first[["clip_id", "label"]]) for table, _raw in own):
            raise EvaluationError(
                f"{entry.name}: the networks of fold {fold} were measured on different clips or labels, so the corpus "
                "has changed between them; name another --table and --runs, or remove the rows of the older ones"
            )
        means.append(
            with_probabilities(first.assign(seed=""), labels, np.mean([probabilities_in(t, labels) for t, _ in own], 0))
        )
        raws.append(np.mean([raw for _table, raw in own], axis=0))
    return pd.concat(means, ignore_index=True), np.concatenate(raws)


def _row(settings: StudySettings, entry: Entry, found: Answers, base: Answers | None) -> PooledRow:
    """Write the report of a system's answers; returns their row, with the gain over those of `base`."""
    predicted, labels = found.predicted, found.labels
    folds, seeds = ({int(one) for one in entry.rows[name]} for name in ("fold", "seed"))
    conditions = {
        "checkpoint": f"{entry.name}, {found.kind}",
        "part": entry.part,
        "protocol": entry.protocol,
        "folds": sorted(folds),
        "seeds": sorted(seeds),
        "leak": LEAKS.get(entry.protocol, ""),
        "speakers_heard_in_training": [],
    }
    name = f"{entry.name}-{entry.labels}-{entry.protocol}-{entry.part}-{found.kind}"
    out = settings.runs / "pooled" / settings.page.stem / name.replace(", ", "-").replace(" ", "-")
    report = write_report(out, conditions, predicted, labels, untempered=found.untempered)
    _gallery(settings, entry, report, predicted, out / "gallery.png")
    of_run = {place: _uar(own, labels) for place, own in predicted.groupby(["seed", "fold"], sort=False)}
    of_seed = pd.Series(of_run).groupby(level=0).mean()
    calibration = report["calibration"]
    tempered = calibration["probabilities"] if entry.part == "test" else {}
    untempered = calibration.get("without_temperature", {})
    return PooledRow(
        system=entry.system,
        augmented=entry.augmented,
        images=entry.images,
        config=entry.config,
        corpus=entry.corpus,
        labels=entry.labels,
        protocol=entry.protocol,
        part=entry.part,
        kind=found.kind,
        folds=len(folds),
        seeds=len(seeds),
        runs=len(entry.rows),
        asked=entry.asked,
        clips=len(predicted),
        mean_uar=float(of_seed.mean()),
        sd_of_seeds=float(of_seed.std()) if len(of_seed) > 1 and entry.complete else None,
        uar=report["uar"]["value"],
        low=report["uar"]["interval"][0],
        high=report["uar"]["interval"][1],
        **(_gain(base, found) if base is not None else {}),
        wa=report["wa"]["value"],
        f1=report["f1"]["value"],
        ece=tempered.get("ece"),
        nll=tempered.get("nll"),
        ece_untempered=untempered.get("ece"),
        nll_untempered=untempered.get("nll"),
    )


def _gain(base: Answers, found: Answers) -> dict[str, float | None]:
    """Return the difference of two UARs, with its interval; nothing if the clips are not the same."""
    if set(base.predicted["clip_id"]) != set(found.predicted["clip_id"]):
        return {}
    return gain(matrices(base.predicted, base.labels), matrices(found.predicted, found.labels))


def _uar(predicted: pd.DataFrame, labels: tuple[str, ...]) -> float:
    return figures(np.sum(list(matrices(predicted, labels).values()), axis=0)).uar


def _gallery(
    settings: StudySettings, entry: Entry, report: dict[str, Any], predicted: pd.DataFrame, path: Path
) -> None:
    """Plot some of the clips, if the answers have each clip once and the rendering still exists."""
    folder = settings.runs / "images" / entry.images
    try:
        index, _spec = read_index(folder)
    except SpectroError:
        return
    images = index[index["copy"] == 0].set_index("clip_id")["image"]
    if predicted["clip_id"].is_unique and predicted["clip_id"].isin(images.index).all():
        plots.gallery(report, predicted, [folder / images[name] for name in predicted["clip_id"]], path)
