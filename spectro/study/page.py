"""The page of a study: one self-contained HTML file that shows all systems side by side.

Figures and intervals are computed from the predictions of a system's runs, pooled over the runs.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from spectro.corpora.registry import find
from spectro.corpora.splits import LEAKS, natural
from spectro.errors import EvaluationError, SpectroError
from spectro.evaluate.report import METRICS_FILE
from spectro.files import printable, read_json, write_bytes
from spectro.model.checkpoint import versions
from spectro.model.metadata import WEIGHTS_FILE
from spectro.picture import spectrogram
from spectro.rendering.index import read_index
from spectro.study import figures
from spectro.study.results import Entry, read_predictions, report_folder
from spectro.study.settings import StudySettings

PUBLISHED = ("system", "corpus", "labels", "protocol", "figure", "measure", "source")
TITLE = b"<title>spectro: systems side by side</title>"
LEAST_ON_MAP = 10
ENVELOPE = 300
"""Points of a plotted waveform."""


def is_page(path: Path) -> bool:
    """Return whether a file is the page of a study."""
    try:
        with path.open("rb") as stream:
            return TITLE in stream.read(2000)
    except OSError:
        return False


def write_page(settings: StudySettings, entries: list[Entry], pooled: pd.DataFrame) -> None:
    """Write a study's page.

    Args:
        settings: the study.
        entries: its systems.
        pooled: their pooled figures.

    Raises:
        EvaluationError: the table of published figures cannot be read.
    """
    found = sorted(entries, key=lambda one: -np.nan_to_num(one.uar, nan=-1.0))
    content = _template().render(
        boards=list(_boards(settings, found)),
        pooled=pooled[pooled["kind"] != "single"].to_dict("records"),
        published=read_published(settings.published),
        curves=list(_curves(found)),
        costs=[figures.costs(board, found) for board in _honest_places(found)],
        map=_map(settings, found),
        examples=_examples(settings, found),
        corpora=[find(name) for name in sorted({name for one in found for name in one.corpus.split("+")})],
        leaks={name: text for name, text in LEAKS.items() if any(one.protocol == name for one in found)},
        settings=_plain(settings),
        versions=versions(),
        runs=sum(len(one.rows) for one in found),
        hours=sum(float(one.rows["train_s"].sum()) for one in found) / 3600,
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    write_bytes(settings.page, content.encode())


def _boards(settings: StudySettings, found: list[Entry]) -> Iterator[dict[str, Any]]:
    """Yield a leaderboard for each corpus and label scheme, in the study's order: best on new speakers first."""
    places = dict.fromkeys((labels, _corpus(one)) for labels in settings.labels for one in found)
    for labels, corpus in places:
        here = [one for one in found if (one.labels, _corpus(one)) == (labels, corpus)]
        protocols = [name for name in settings.protocols if any(one.protocol == name for one in here)]
        if not here:
            continue
        protocols.sort(key=lambda name: name in LEAKS)
        ordered = sorted(here, key=lambda one: one.protocol != protocols[0])
        rows = [
            _row([one for one in here if one.key == key], protocols) for key in dict.fromkeys(o.key for o in ordered)
        ]
        reports = [one.report for one in here if one.report]
        classes = list(reports[0]["labels"]) if reports else []
        occurring = {name for one in reports for name, values in one["labels"].items() if values["clips"]}
        gains = [gain for row in rows if (gain := row["flatters"]) is not None]
        honest = [one for one in here if one.protocol == protocols[0] not in LEAKS and one.complete]
        yield {
            "corpus": corpus,
            "labels": labels,
            "protocols": protocols,
            "leaky": list(LEAKS),
            "rows": rows,
            "best": _favoured(honest),
            "chosen": not any(one.rows["valid_uar"].isna().all() for one in honest),
            "classes": classes,
            "chance": 1 / len(occurring) if occurring else None,
            "speakers": natural({name for one in honest if one.report for name in one.report["speakers"]}),
            "flatters": float(np.mean(gains)) if gains else None,
        }


def _favoured(entries: list[Entry]) -> Entry | None:
    """Return the best system on validation speakers; if there are no such figures, the only system or None."""
    validated = [one for one in entries if one.rows["valid_uar"].notna().any()]
    if not validated:
        return entries[0] if len(entries) == 1 else None
    return max(validated, key=lambda one: float(one.rows["valid_uar"].mean()))


def _row(entries: list[Entry], protocols: list[str]) -> dict[str, Any]:
    """Return a system's cells by protocol, and its gain under the leaky protocol if both are complete."""
    cells = {one.protocol: one for one in entries}
    first, leaky = (
        next(cells[name] for name in protocols if name in cells),
        next((cells[name] for name in LEAKS if name in cells), None),
    )
    both = leaky is not None and leaky is not first and leaky.complete and first.complete
    gain = leaky.uar - first.uar if leaky is not None and both and first.protocol == protocols[0] else None
    return {"first": first, "cells": [cells.get(name) for name in protocols], "flatters": gain}


def _corpus(entry: Entry) -> str:
    """Return the corpus of a board; for `folder`, which can be any folder, with the rendering."""
    return f"{entry.corpus} {entry.images}" if "folder" in entry.corpus.split("+") else entry.corpus


def _honest_places(found: list[Entry]) -> list[tuple[str, str, str]]:
    """Return the corpora, label schemes and protocols that have figures on new speakers."""
    return list(dict.fromkeys((one.corpus, one.labels, one.protocol) for one in found if one.protocol not in LEAKS))


def read_published(path: Path | None) -> list[dict[str, str]]:
    """Return the rows of a table of published figures; none without a table.

    Raises:
        EvaluationError: it cannot be read, or is another kind of table.
    """
    if path is None:
        return []
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{printable(path)}: cannot be read as a table of published figures ({error})") from error
    if tuple(table.columns) != PUBLISHED:
        raise EvaluationError(f"{printable(path)}: must have the columns {', '.join(PUBLISHED)}")
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _curves(found: list[Entry]) -> Iterator[dict[str, Any]]:
    """Yield the learning curves of each system that has epochs."""
    for one in found:
        files = [folder / "curves.csv" for folder in one.folders]
        runs = [pd.read_csv(file) for file in files if file.exists()]
        if runs:
            place = f"{one.corpus}, {one.labels}, {one.protocol}"
            yield {"name": one.name, "place": place, "svg": figures.curves(f"{one.name} {place}", runs)}


def _map(settings: StudySettings, found: list[Entry]) -> dict[str, Any] | None:
    """Return a map of the test clips' embeddings by the best network on validation speakers; None without one."""
    networks = [one for one in found if one.protocol not in LEAKS and one.complete and _is_network(one.folders[0])]
    best = _favoured(networks)
    if best is None:
        return None
    from spectro.predict.batches import predict_rows
    from spectro.predict.predictor import Predictor

    clips, folder = read_predictions(best.folders[0]), settings.runs / "images" / best.images
    try:
        index, _spec = read_index(folder)
        predictor = Predictor(best.folders[0])
    except SpectroError:
        return None  # the rendering is gone, but its table is still there
    untouched = index[index["copy"] == 0]
    images = dict(zip(untouched["clip_id"], untouched["image"], strict=True))
    found_rows = list(predict_rows(predictor, [folder / str(images.get(name, "")) for name in clips["clip_id"]]))
    if len(found_rows) < LEAST_ON_MAP or any(row.embedding is None for row in found_rows):
        return None  # there are too few clips, or the pictures have changed
    embeddings = np.stack([row.embedding for row in found_rows if row.embedding is not None])
    report = read_json(report_folder(best.folders[0]) / METRICS_FILE)
    return {
        "system": best.name,
        "fold": report["fold"],
        "protocol": best.protocol,
        "svg": figures.embedding_map(embeddings, clips, list(report["labels"])),
    }


def _is_network(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).exists() and (report_folder(folder) / METRICS_FILE).exists()


def _examples(settings: StudySettings, found: list[Entry]) -> list[dict[str, Any]]:
    """Return waveform and picture of one clip per emotion and gender, for each rendering."""
    made = []
    for name in dict.fromkeys(one.images for one in found):
        folder = settings.runs / "images" / name
        try:
            index, spec = read_index(folder)
        except SpectroError:
            continue  # the rendering is gone, but its table is still there
        untouched = index[index["copy"] == 0]
        groups = untouched.fillna({"gender": ""}).groupby(["emotion", "gender"], sort=False).head(1)
        clips = []
        for row in groups.to_dict("records"):
            picture = folder / str(row["image"])
            if not picture.exists():
                continue
            try:
                envelope = _envelope(spectrogram.read(str(row["path"]), spec, max_duration_s=None))
            except SpectroError:
                envelope = ""  # the recording has gone since it was rendered
            png = base64.b64encode(picture.read_bytes()).decode()
            speaker = "" if pd.isna(row["speaker"]) else f", speaker {row['speaker']}"
            clips.append(
                {
                    **row,
                    "caption": f"{row['emotion']}{speaker}",
                    "png": png,
                    "envelope": envelope,
                    "seconds": spec.duration_s,
                }
            )
        genders = natural({str(clip["gender"]) for clip in clips})
        emotions = list(dict.fromkeys(str(clip["emotion"]) for clip in clips))
        made.append({"images": name, "clips": clips, "genders": genders, "emotions": emotions, "spec": spec})
    return made


def _envelope(samples: np.ndarray[Any, Any]) -> str:
    """Return the outline of a waveform as the points of an SVG polygon, 300 wide and 60 high."""
    blocks = np.array_split(samples / max(1e-9, float(np.abs(samples).max())), ENVELOPE)
    upper = [(x, 30 - 29 * float(block.max(initial=0))) for x, block in enumerate(blocks)]
    lower = [(x, 30 - 29 * float(block.min(initial=0))) for x, block in enumerate(blocks)]
    return " ".join(f"{x},{y:.1f}" for x, y in [*upper, *reversed(lower)])


def _plain(settings: StudySettings) -> dict[str, Any]:
    """Return the study's settings as in its YAML, without those that belong to this machine."""
    free = {
        *("runs", "table", "report", "source", "jobs", "weights", "published", "quick", "shorter"),
        *("cluster", "cluster_cpus", "cluster_gpus"),
    }
    shown = {name: value for name, value in asdict(settings).items() if name not in free}
    plain: dict[str, Any] = json.loads(json.dumps(shown, default=str))
    return plain


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("spectro.study", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "seconds": _seconds, "shade": figures.shade}
    return environment.get_template("page.html")


def _figure(value: float | None) -> str:
    return "\u2013" if value is None or np.isnan(value) else f"{value:.3f}"


def _seconds(value: float) -> str:
    if np.isnan(value):
        return "\u2013"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"
