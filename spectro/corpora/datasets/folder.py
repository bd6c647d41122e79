"""Any folder of recordings: `<class>/clip.wav`, or a CSV with columns `path`, `label` and, better, `speaker`.

A CSV's paths are relative to the CSV, or are addresses such as s3://bucket/clip.wav. The column `label` may be named
`emotion`; further columns (`gender`, `language`, ...) are kept. Without speakers, no speaker-independent protocol can
be applied, and splitting says so.

Blanks around names are removed, and names are converted to Unicode's composed form. Folders of a split (`train`,
`test`, ...) above the classes are not classes: their parts are merged, since spectro splits by speaker.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath

import pandas as pd

from spectro.addresses import Place, is_address, place
from spectro.corpora.table import Corpus, Fields, Parser, below, clip_id, visible_recordings
from spectro.errors import CorpusError
from spectro.files import printable

RESERVED = {"clip_id", "corpus", "copy", "image", "augmentation", "parameters", "content_mark", "spec", "target"}
SPLITS = {"train", "training", "valid", "validation", "val", "dev", "test", "testing"}
"""Folder names that are parts of a split, in lower case."""
GENDERS = {
    **dict.fromkeys(("female", "f", "woman", "women", "w"), "female"),
    **dict.fromkeys(("male", "m", "man", "men"), "male"),
}
"""Values that a CSV may have for a speaker's gender, in lower case."""


def open_folder(root: Path) -> Parser:
    """Return a parser of `root`, which is a folder of classes or a CSV.

    Raises:
        CorpusError: the CSV contradicts itself or lacks a column, or folders of a split are mixed with others.
    """
    if root.is_dir():
        return partial(_parse_class, level=1 if split_folders(root) else 0)
    rows = _fields(_read_csv(root), root.parent, root)
    alike = Counter(PurePath(path).with_suffix("") for path in rows)

    def parse(path: PurePath) -> Fields:
        if not rows[str(path)]["emotion"]:
            raise CorpusError(f"has no label in {root.name}")
        return {"clip_id": clip_id("folder", path, marked=alike[path.with_suffix("")] > 1), **rows[str(path)]}

    return parse


def list_files(root: Path) -> Iterator[Place]:
    """Yield the recordings in a folder, or the recordings that a CSV lists."""
    if root.is_dir():
        yield from visible_recordings(root)
    else:
        yield from {_place(root.parent, path): None for path in _read_csv(root)["path"]}


def split_folders(root: Path) -> list[str]:
    """Return the names of a split's folders above the classes; empty if there is no such split.

    Raises:
        CorpusError: other folders with recordings lie beside them, so that parts and classes cannot be distinguished.
    """
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    parts = [name for name in names if name.strip().lower() in SPLITS]
    others = [name for name in names if name not in parts and any(visible_recordings(root / name, below=root))]
    if parts and others:
        raise CorpusError(
            f"{printable(root)}: has {_some(parts)}, which look like parts of a split, beside {_some(others)}, "
            "which look like classes; move one kind away, or list the clips in a CSV with columns path, label, speaker"
        )
    return parts


def remarks(root: Path, clips: pd.DataFrame) -> list[str]:
    """Return notes for the user on how the folder or CSV was interpreted.

    Raises:
        CorpusError: labels, or speakers, differ only by case or leading zeros.
    """
    for column, name in (("emotion", "labels"), ("speaker", "speakers")):
        _check_spelling(root, clips[column], name)
    found = []
    if root.is_dir() and (parts := split_folders(root)):
        found.append(
            f"{_some(parts)} are taken as parts of a split, and the folders below them as classes; the parts are "
            "merged, since spectro makes its own split, by speaker"
        )
    labels = sorted(set(clips["emotion"]))
    if all(label.isdecimal() for label in labels):
        found.append(f"all labels are numbers ({_some(labels)}): are they classes, or speakers?")
    return found


def _check_spelling(root: Path, given: pd.Series, name: str) -> None:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    counts = given.value_counts()
    for one in sorted(counts.index):
        alike[str(int(one)) if one.isdecimal() else one.casefold()].append(f"{one!r} ({counts[one]} clips)")
    if different := [spellings for spellings in alike.values() if len(spellings) > 1]:
        raise CorpusError(
            f"{printable(root)}: the {name} {' and '.join(different[0])} differ only by case or leading zeros; "
            "spell them alike, " + ("by renaming the folders" if root.is_dir() else "in the CSV")
        )


def _parse_class(path: PurePath, level: int) -> Fields:
    """Read a clip's label from the folder at a level of its path."""
    if len(path.parts) < level + 2:
        expected = f"{path.parts[0]}/<class>/clip.wav" if level and len(path.parts) > 1 else "<class>/clip.wav"
        raise CorpusError(f"is not inside a class folder; expected {expected}")
    label = plain(path.parts[level])
    if not label:
        raise CorpusError("is in a folder with a blank name")
    return {"clip_id": clip_id("folder", path), "emotion": label}


def plain(name: str) -> str:
    """Return a name for comparison: without blanks around it, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name).strip()


def _read_csv(table_path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(table_path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise CorpusError(f"{table_path}: is not a readable CSV ({error}); save it as UTF-8, with commas") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first fields for names of rows
        raise CorpusError(
            f"{table_path}: its rows have more fields than its first line has columns; remove commas at the ends of "
            "lines, and quote values that hold commas"
        )
    table = table[(table.map(str.strip) != "").any(axis=1)]  # spreadsheets save blank rows
    table.columns = table.columns.str.strip()
    if twice := sorted(set(table.columns[table.columns.duplicated()])):
        raise CorpusError(f"{table_path}: has two columns named {', '.join(twice)}; rename one of them")
    if {"label", "emotion"} <= set(table.columns):
        raise CorpusError(f"{table_path}: has the columns label and emotion; rename one of them")
    table = table.rename(columns={"label": "emotion"}).drop_duplicates()
    if not {"path", "emotion"} <= set(table.columns):
        raise CorpusError(f"{table_path}: needs the columns path and label (and speaker, for an honest split)")
    if taken := RESERVED & set(table.columns):
        raise CorpusError(
            f"{table_path}: rename the columns {', '.join(sorted(taken))}: spectro uses these names itself"
        )
    if (nameless := table["path"].str.strip() == "").any():
        number = nameless.index[nameless].to_list()[0] + 1
        raise CorpusError(f"{table_path}: row {number} below the first line has no path; fill it in, or remove the row")
    return table


def _fields(table: pd.DataFrame, base: Path, name: Path) -> dict[str, Fields]:
    """Return the table's rows by their path relative to `base`."""
    rows: dict[str, Fields] = {}
    for record in table.to_dict("records"):
        fields: Fields = {str(key): plain(value) or None for key, value in record.items() if key != "path"}
        path = str(below(_place(base, record["path"]), base))
        if not PurePath(path).name:
            raise CorpusError(f"{name}: the path {record['path']!r} names no recording; correct it, or remove the row")
        if gender := fields.get("gender"):
            fields["gender"] = GENDERS.get(gender.lower())
            if fields["gender"] is None:
                raise CorpusError(
                    f"{name}: the gender of {path} is {gender!r}; write female or male (F, M), or leave it empty"
                )
        if rows.setdefault(path, fields) != fields:
            raise CorpusError(f"{name}: {path} is listed twice, with different values; keep one of the rows")
    return rows


def _place(base: Path, path: str) -> Place:
    """Return the path of a CSV's recording, without blanks around it, unless a file with these blanks exists.

    A recording at an address is returned as an `Address`.
    """
    if is_address(path.strip()):
        return place(path.strip())
    here = base / path
    return here if path == path.strip() or here.exists() else base / path.strip()


def _some(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown


FOLDER = Corpus(
    name="folder",
    title="a folder of classes, or a CSV",
    emotions=(),
    language=None,
    licence="unknown; ask the owner of the recordings",
    homepage="",
    open=open_folder,
    files=list_files,
    remarks=remarks,
)
