"""Any folder of recordings: `<class>/clip.wav`, or a CSV with columns `path`, `label` and, better, `speaker`.

A CSV's paths are relative to the CSV. `emotion` may stand for `label`; further columns (`gender`, `language`, ...) are
kept. Without speakers no honest protocol can be applied, and splitting says so.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

import pandas as pd

from spectro.corpora.table import Corpus, Fields, Parser, clip_id
from spectro.errors import CorpusError
from spectro.signal.audio import recordings

RESERVED = {"clip_id", "corpus", "copy", "image", "augmentation", "parameters", "spec", "target"}


def open_folder(root: Path) -> Parser:
    """Return a parser of `root`, which is a folder of classes or a CSV."""
    if root.is_dir():
        return _parse_class
    rows = _fields(_read_csv(root), root.parent, root)

    def parse(path: PurePath) -> Fields:
        if not rows[str(path)]["emotion"]:
            raise CorpusError(f"has no label in {root.name}")
        return {"clip_id": clip_id("folder", path), **rows[str(path)]}

    return parse


def list_files(root: Path) -> Iterator[Path]:
    """Yield the recordings below a folder, or those that a CSV lists."""
    if root.is_dir():
        yield from recordings(root)
    else:
        yield from {root.parent / path: None for path in _read_csv(root)["path"]}


def _parse_class(path: PurePath) -> Fields:
    if len(path.parts) < 2:
        raise CorpusError("lies in no class's folder; expected <class>/clip.wav")
    return {"clip_id": clip_id("folder", path), "emotion": path.parts[0]}


def _read_csv(table_path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(table_path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise CorpusError(f"{table_path}: is not a readable CSV ({error})") from error
    if {"label", "emotion"} <= set(table.columns):
        raise CorpusError(f"{table_path}: has the columns label and emotion; rename one of them")
    table = table.rename(columns={"label": "emotion"}).drop_duplicates()
    if not {"path", "emotion"} <= set(table.columns):
        raise CorpusError(f"{table_path}: needs the columns path and label (and speaker, for an honest split)")
    if taken := RESERVED & set(table.columns):
        raise CorpusError(f"{table_path}: rename the columns {', '.join(sorted(taken))}: these names are spectro's own")
    if not table["path"].str.strip().all():
        raise CorpusError(f"{table_path}: a row has no path")
    return table


def _fields(table: pd.DataFrame, base: Path, name: Path) -> dict[str, Fields]:
    """Return the table's rows by their path relative to `base`."""
    rows: dict[str, Fields] = {}
    for record in table.to_dict("records"):
        fields = {str(key): value or None for key, value in record.items() if key != "path"}
        path = os.path.relpath(base / record["path"], base)
        if rows.setdefault(path, fields) != fields:
            raise CorpusError(f"{name}: {path} stands there twice, with different values; keep one of the rows")
    return rows


FOLDER = Corpus(
    name="folder",
    title="a folder of classes, or a CSV",
    emotions=(),
    language=None,
    licence="unknown; ask the owner of the recordings",
    homepage="",
    open=open_folder,
    files=list_files,
)
