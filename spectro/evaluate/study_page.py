"""The page of a study: one HTML file that needs nothing else, with all systems side by side.

Figures are pooled over a system's runs, and intervals drawn over speakers, from the predictions that its runs left.
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

from spectro.corpora import find
from spectro.corpora.splits import LEAK, LEAKY, natural
from spectro.errors import EvaluationError, SpectroError
from spectro.evaluate import study_figures
from spectro.evaluate.entries import Entry, Folders, entries
from spectro.evaluate.grid import StudySettings
from spectro.evaluate.outcome import METRICS_FILE, PREDICTIONS_FILE
from spectro.files import printable, read_json, write_bytes
from spectro.learn.backbones import WEIGHTS_FILE
from spectro.learn.checkpoint import versions
from spectro.render import read_index
from spectro.signal import spectrogram

PUBLISHED = ("system", "corpus", "labels", "protocol", "figure", "measure", "source")
ENVELOPE = 300
"""Points of a drawn waveform."""


def write_page(settings: StudySettings, table: pd.DataFrame, folders: Folders) -> None:
    """Write a study's page.

    Args:
        settings: the study.
        table: its table.
        folders: result folder of each run, by the run's key.

    Raises:
        EvaluationError: the table of published figures cannot be read.
    """
    found = sorted(entries(settings, table, folders), key=lambda one: -np.nan_to_num(one.uar, nan=-1.0))
    content = _template().render(
        boards=list(_boards(found)),
        published=_published(settings.published),
        curves=list(_curves(found)),
        costs=[study_figures.costs(board, found) for board in _honest_places(found)],
        map=_map(settings, found),
        examples=_examples(settings, found),
        corpora=[find(name) for name in sorted({name for one in found for name in one.corpus.split("+")})],
        leak=LEAK,
        settings=_plain(settings),
        versions=versions(),
        runs=sum(len(one.rows) for one in found),
        hours=sum(float(one.rows["train_s"].sum()) for one in found) / 3600,
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    write_bytes(settings.page, content.encode())


def _boards(found: list[Entry]) -> Iterator[dict[str, Any]]:
    """Yield a leaderboard for each corpus and label scheme: best on new speakers first."""
    for corpus, labels in dict.fromkeys((one.corpus, one.labels) for one in found):
        here = [one for one in found if (one.corpus, one.labels) == (corpus, labels)]
        protocols = sorted(dict.fromkeys(one.protocol for one in here), key=lambda name: name == LEAKY)
        names = dict.fromkeys((one.system, one.augmented) for one in _first_by(here, protocols[0]))
        rows: list[dict[str, Any]] = []
        for name in names:
            cells = {one.protocol: one for one in here if (one.system, one.augmented) == name}
            first = cells.get(protocols[0]) or next(iter(cells.values()))
            honest = cells.get(protocols[0]) if protocols[0] != LEAKY else None
            gain = cells[LEAKY].uar - honest.uar if honest is not None and LEAKY in cells else None
            rows.append({"first": first, "cells": [cells.get(protocol) for protocol in protocols], "flatters": gain})
        classes = next((list(one.report["labels"]) for one in here if one.report), [])
        speakers = natural({name for one in here if one.report for name in one.report["speakers"]})
        gains = [gain for row in rows if isinstance(gain := row["flatters"], float)]
        yield {
            "corpus": corpus,
            "labels": labels,
            "protocols": protocols,
            "leaky": LEAKY,
            "rows": rows,
            "classes": classes,
            "chance": 1 / len(classes) if classes else None,
            "speakers": speakers,
            "flatters": float(np.mean(gains)) if gains else None,
        }


def _first_by(found: list[Entry], protocol: str) -> list[Entry]:
    """Return entries, those of a protocol before all others."""
    return sorted(found, key=lambda one: one.protocol != protocol)


def _honest_places(found: list[Entry]) -> list[tuple[str, str, str]]:
    """Return the corpora, label schemes and protocols that have figures on new speakers."""
    return list(dict.fromkeys((one.corpus, one.labels, one.protocol) for one in found if one.protocol != LEAKY))


def _published(path: Path | None) -> list[dict[str, Any]]:
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
            yield {"name": one.name, "place": place, "svg": study_figures.curves(f"{one.name} {place}", runs)}


def _map(settings: StudySettings, found: list[Entry]) -> dict[str, Any] | None:
    """Return a picture of the embeddings of the best network's test clips; None if no network is at hand."""
    best = next((one for one in found if one.protocol != LEAKY and _is_network(one.folders[0])), None)
    if best is None:
        return None
    from spectro.predict.folder import predict_rows
    from spectro.predict.predictor import Predictor

    clips = pd.read_csv(best.folders[0] / "evaluation-test" / PREDICTIONS_FILE, dtype={"speaker": str})
    folder = settings.runs / "images" / best.images
    index, _spec = read_index(folder)
    images = index[index["copy"] == 0].set_index("clip_id")["image"]
    paths = [folder / str(images[name]) for name in clips["clip_id"]]
    found_rows = list(predict_rows(Predictor(best.folders[0]), paths))
    if any(row.embedding is None for row in found_rows):
        return None  # the pictures are gone since
    embeddings = np.stack([row.embedding for row in found_rows if row.embedding is not None])
    report = read_json(best.folders[0] / "evaluation-test" / METRICS_FILE)
    return {
        "system": best.name,
        "fold": report["fold"],
        "protocol": best.protocol,
        "svg": study_figures.embedding_map(embeddings, clips, list(report["labels"])),
    }


def _is_network(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).exists() and (folder / "evaluation-test" / METRICS_FILE).exists()


def _examples(settings: StudySettings, found: list[Entry]) -> list[dict[str, Any]]:
    """Return waveform and picture of one clip of each emotion, by gender, for each rendering."""
    made = []
    for name in dict.fromkeys(one.images for one in found):
        folder = settings.runs / "images" / name
        try:
            index, spec = read_index(folder)
        except SpectroError:
            continue  # the rendering is gone: its table still stands
        untouched = index[index["copy"] == 0]
        groups = untouched.fillna({"gender": ""}).groupby(["emotion", "gender"], sort=False).first().reset_index()
        clips = []
        for row in groups.to_dict("records"):
            picture = folder / str(row["image"])
            if not picture.exists():
                continue
            try:
                envelope = _envelope(spectrogram.read(str(row["path"]), spec, max_duration_s=None))
            except SpectroError:
                envelope = ""  # the recording is gone since it was drawn
            png = base64.b64encode(picture.read_bytes()).decode()
            clips.append({**row, "png": png, "envelope": envelope, "seconds": spec.duration_s})
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
    """Return the study's settings as they would stand in its YAML, without what is this machine's own."""
    free = ("runs", "table", "report", "source", "jobs", "weights", "published", "quick", "shorter")
    plain: dict[str, Any] = json.loads(
        json.dumps({name: value for name, value in asdict(settings).items() if name not in free}, default=str)
    )
    return plain


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("spectro.evaluate", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "seconds": _seconds, "shade": study_figures.shade}
    return environment.get_template("study_page.html")


def _figure(value: float | None) -> str:
    return "\u2013" if value is None or np.isnan(value) else f"{value:.3f}"


def _seconds(value: float) -> str:
    if np.isnan(value):
        return "\u2013"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"
