"""What a study's systems say of all clips: single runs, seeds averaged, and networks that adapted to a voice.

Each kind of answer is told apart: `single` is what one network says of a voice that is new to it, the figures of all
seeds together; `ensemble` averages the probabilities of a fold's seeds; `transductive` is said after the batch norms
have seen all clips of a speaker without their labels.

Systems are compared with the study's first one on the same speakers, by a bootstrap that draws speakers for both at
once: what all systems find hard in a voice falls out of the difference.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectro.corpora.splits import LEAKS
from spectro.errors import SpectroError
from spectro.evaluate import plots
from spectro.evaluate.entries import Entry, read_predictions, report_folder
from spectro.evaluate.grid import StudySettings
from spectro.evaluate.metrics import bootstrap, interval
from spectro.evaluate.outcome import (
    ADAPTED_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    chances_in,
    matrices,
    with_chances,
    without_temperature,
    write_report,
)
from spectro.files import read_json, write_bytes
from spectro.learn.figures import Floats, figures
from spectro.render import read_index

COLUMNS = (
    "system",
    "augmented",
    "images",
    "corpus",
    "labels",
    "protocol",
    "kind",
    "folds",
    "seeds",
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
CHANCES = ("ece", "nll")


def write_pooled(settings: StudySettings, found: list[Entry]) -> pd.DataFrame:
    """Write the pooled table beside the study's page, and a report of each kind of answer into `RUNS/pooled`.

    Args:
        settings: the study.
        found: its systems; those without predictions, or without probabilities, are left out.

    Returns:
        the table, with the columns of `COLUMNS`. `mean_uar` is the mean over folds, then seeds; `uar` that of all clips
        together, with `low` and `high` by the bootstrap over speakers; `gain` what it is more than that of the first
        system, or the first kind of answers, that is `single`, of the same clips.
    """
    rows: list[dict[str, Any]] = []
    first: dict[tuple[str, ...], pd.DataFrame] = {}
    for entry in found:
        for kind, predicted, labels, untempered in answers(entry):
            row = _row(settings, entry, kind, predicted, labels, untempered)
            base = first.setdefault((entry.corpus, entry.labels, entry.protocol), predicted)
            if base is not predicted and set(base["clip_id"]) == set(predicted["clip_id"]):
                row |= _gain(base, predicted, labels)
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    write_bytes(settings.pooled, table.to_csv(index=False, float_format="%.4f").encode())
    return table


def answers(entry: Entry) -> Iterator[tuple[str, pd.DataFrame, tuple[str, ...], Floats | None]]:
    """Yield the kinds of answers that a system's runs left: kind, predictions, labels, and untempered probabilities.

    Predictions have the columns `fold` and `seed`, which is empty where seeds were averaged.
    """
    places = list(zip(entry.rows["fold"], entry.rows["seed"], entry.folders, strict=True))
    reports = [read_json(report_folder(folder, entry.part) / METRICS_FILE) for _fold, _seed, folder in places]
    if entry.report is None or "calibration" not in reports[0]:
        return
    labels, temperatures = tuple(reports[0]["labels"]), [one.get("temperature") for one in reports]
    several = {fold: [s for f, s, _folder in places if f == fold] for fold, _seed, _folder in places}
    averaged = entry.complete and all(len(seeds) > 1 for seeds in several.values())
    for name, file in (("", PREDICTIONS_FILE), ("transductive", ADAPTED_FILE)):
        if not all((report_folder(folder, entry.part) / file).exists() for _fold, _seed, folder in places):
            continue
        tables = [read_predictions(folder, file, entry.part).assign(fold=f, seed=str(s)) for f, s, folder in places]
        before = [
            without_temperature(chances_in(table, labels), temperature or 1.0)
            for table, temperature in zip(tables, temperatures, strict=True)
        ]
        tempered = None not in temperatures
        whole = pd.concat(tables, ignore_index=True)
        yield name or "single", whole, labels, np.concatenate(before) if tempered else None
        if averaged:
            mean, raw = _averaged(tables, before, labels)
            yield f"{name} ensemble".strip(), mean, labels, raw if tempered else None


def _averaged(tables: list[pd.DataFrame], before: list[Floats], labels: tuple[str, ...]) -> tuple[pd.DataFrame, Floats]:
    """Return the mean over seeds of the probabilities of each fold's clips, and of those before the temperature."""
    means, raws = [], []
    for fold in dict.fromkeys(int(table["fold"].iloc[0]) for table in tables):
        own = [(table, raw) for table, raw in zip(tables, before, strict=True) if int(table["fold"].iloc[0]) == fold]
        first = own[0][0]
        if any(list(table["clip_id"]) != list(first["clip_id"]) for table, _raw in own):
            raise ValueError("the seeds of a fold were measured on different clips")
        means.append(with_chances(first.assign(seed=""), labels, np.mean([chances_in(t, labels) for t, _ in own], 0)))
        raws.append(np.mean([raw for _table, raw in own], axis=0))
    return pd.concat(means, ignore_index=True), np.concatenate(raws)


def _row(
    settings: StudySettings,
    entry: Entry,
    kind: str,
    predicted: pd.DataFrame,
    labels: tuple[str, ...],
    untempered: Floats | None,
) -> dict[str, Any]:
    seeds = len(set(entry.rows["seed"]))
    conditions = {
        "checkpoint": f"{entry.name}, {kind}",
        "part": entry.part,
        "protocol": entry.protocol,
        "folds": sorted({int(fold) for fold in entry.rows["fold"]}),
        "seeds": sorted({int(seed) for seed in entry.rows["seed"]}),
        "leak": LEAKS.get(entry.protocol, ""),
        "speakers_heard_in_training": [],
    }
    name = f"{entry.name}-{entry.labels}-{entry.protocol}-{kind}".replace(", ", "-").replace(" ", "-")
    out = settings.runs / "pooled" / name
    report = write_report(out, conditions, predicted, labels, untempered=untempered)
    _gallery(settings, entry, report, predicted, out / "gallery.png")
    each = [((fold, seed), _uar(own)) for (fold, seed), own in predicted.groupby(["fold", "seed"], sort=False)]
    of_seed = pd.Series([uar for _place, uar in each]).groupby([seed for (_fold, seed), _uar in each]).mean()
    told = report["calibration"]
    return {
        "system": entry.system,
        "augmented": entry.augmented,
        "images": entry.images,
        "corpus": entry.corpus,
        "labels": entry.labels,
        "protocol": entry.protocol,
        "kind": kind,
        "folds": len(conditions["folds"]),
        "seeds": seeds,
        "clips": len(predicted),
        "mean_uar": float(of_seed.mean()),
        "sd_of_seeds": float(of_seed.std()) if len(of_seed) > 1 else None,
        "uar": report["uar"]["value"],
        "low": report["uar"]["interval"][0],
        "high": report["uar"]["interval"][1],
        "wa": report["wa"]["value"],
        "f1": report["f1"]["value"],
        **{name: told["probabilities"][name] for name in CHANCES},
        **{f"{name}_untempered": told.get("without_temperature", {}).get(name) for name in CHANCES},
    }


def _gain(base: pd.DataFrame, predicted: pd.DataFrame, labels: tuple[str, ...]) -> dict[str, float | None]:
    """Return the difference of two systems' UAR on the same speakers, with its interval."""
    pair = [matrices(one, labels) for one in (base, predicted)]
    whole = [figures(np.sum(list(one.values()), axis=0)).uar for one in pair]
    drawn = [[sample.uar for sample in bootstrap(one)] for one in pair]  # by one seed: the same speakers for both
    low, high = interval(np.subtract(drawn[1], drawn[0]))
    return {"gain": whole[1] - whole[0], "gain_low": low, "gain_high": high}


def _uar(predicted: pd.DataFrame) -> float:
    right = predicted["label"] == predicted["predicted"]
    return float(right.groupby(predicted["label"]).mean().mean())


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
