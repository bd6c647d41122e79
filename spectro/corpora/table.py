"""The clip table: one row per clip, with the same columns for every corpus.

Columns, all text: `clip_id` (unique, usable as a file name), `path`, `corpus`, `emotion`, `speaker`, `gender`
(`female` or `male`), `language` (ISO 639-1), and a corpus's additions: `votes_<emotion>`, the number of listeners who
chose it; `age` in years, `race` and `ethnicity` of the speaker; and columns of its own. Unknown values are missing.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeAlias

import pandas as pd

from spectro.addresses import FETCHERS, Address, Place, place
from spectro.audio.recording import recordings
from spectro.errors import CorpusError, SpectroError
from spectro.files import path_text, printable

COLUMNS = ("clip_id", "path", "corpus", "emotion", "speaker", "gender", "language")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised", "bored")
"""The emotions of all corpora, in the order in which labels are numbered."""
VOTES = "votes_"
"""Prefix of columns with listeners' votes; an emotion or a label follows."""

Fields: TypeAlias = dict[str, str | None]
Parser: TypeAlias = Callable[[PurePath], Fields]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus of speech and how its files are read.

    Args:
        name: name on the command line.
        title: full name.
        emotions: all classes of the corpus, whether or not their clips are present; empty if the folder defines them.
        language: ISO 639-1 code, or None if the folder defines it.
        licence: licence of the recordings, which a checkpoint trained on them inherits.
        homepage: page that describes or offers the corpus.
        voices: name of the group of speakers, if several corpora share it; None for a group of its own.
        open: takes the corpus's folder, returns a parser: path below the folder -> `emotion`, `speaker`, `gender` and
            further fields. A parser raises CorpusError, with the reason, for a file that does not belong.
        files: takes the corpus's folder, yields the recordings; `visible_recordings` by default. A recording may be at
            an address.
        remarks: takes the corpus's folder and its clip table, returns notes for the user on how they were interpreted;
            raises CorpusError for an invalid table.
    """

    name: str
    title: str
    emotions: tuple[str, ...]
    language: str | None
    licence: str
    homepage: str
    voices: str | None = None
    open: Callable[[Path], Parser]
    files: Callable[[Path], Iterable[Place]] = field(default_factory=lambda: visible_recordings)
    remarks: Callable[[Path, pd.DataFrame], list[str]] = lambda _root, _clips: []


@dataclass(frozen=True)
class Scan:
    """The clips found in a folder.

    Args:
        clips: the clip table, ordered by `clip_id`.
        rejected: recordings that are not in the table, with columns `path, reason`.
        remarks: notes for the user on how the folder was interpreted, a sentence each.
    """

    clips: pd.DataFrame
    rejected: pd.DataFrame
    remarks: tuple[str, ...] = ()


def visible_recordings(root: Path, below: Path | None = None) -> Iterator[Path]:
    """Yield the recordings under `root`, except in hidden folders and the folders that macOS adds to archives.

    Args:
        root: a folder.
        below: folder from which names are checked, so that its own path may have hidden parts; None for `root`.
    """
    for path in recordings(root):
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(below or root).parts):
            yield path


def scan_corpus(corpus: Corpus, root: Path) -> Scan:
    """List the clips of `corpus` under `root`: parse every recording, drop duplicates, list rejected files.

    Raises:
        CorpusError: `root` is not a readable folder (or table), or has no clip of this corpus.
    """
    if not root.exists():
        way = f"name the folder of {corpus.title} with --source"
        if re.match(r"(?!file:|local:)[a-z][a-z0-9+.-]+:[\\/]", str(root), re.IGNORECASE):
            way = "list recordings at addresses in a CSV on this machine, and render that with --corpus folder"
        raise CorpusError(f"{printable(root)}: does not exist; {way}")
    parse = corpus.open(root)
    rows: list[Fields] = []
    rejected: list[tuple[str, str]] = []
    base = root if root.is_dir() else root.parent
    for path in sorted(corpus.files(root), key=PurePath):
        relative = below(path, base)
        if path_text(path) != str(path):
            rejected.append((path_text(path), "has a name that is not UTF-8; rename it"))
            continue
        try:
            fields = parse(relative)
        except CorpusError as reason:
            rejected.append((path_text(path), printable(str(reason))))
            continue
        rows.append({"path": str(path), "corpus": corpus.name, "language": corpus.language, **fields})
        rows[-1].setdefault("clip_id", clip_id(corpus.name, PurePath(relative.name)))
    kept = list(_without_duplicates(rows, rejected))
    listed = pd.DataFrame(rejected, columns=["path", "reason"], dtype="str")
    if not kept:
        example = f", such as {printable(rejected[0][0])}: {rejected[0][1]}" if rejected else ""
        raise CorpusError(
            f"{printable(root)}: has no clip of {corpus.title} ({len(rejected)} recordings rejected{example})"
        )
    clips = make_table(kept)
    return Scan(clips, listed, tuple(corpus.remarks(root, clips)))


def below(path: Place, base: Path) -> PurePath:
    """Return the path of a recording relative to a folder; an address is a path of its own."""
    return PurePath(path) if isinstance(path, Address) else PurePath(os.path.relpath(path, base))


def make_table(rows: list[Fields]) -> pd.DataFrame:
    """Return a clip table ordered by `clip_id`, with text columns.

    Raises:
        CorpusError: a clip has no id, path or corpus, or an id occurs twice.
    """
    table = pd.DataFrame(rows)
    for column in COLUMNS:
        if column not in table:
            table[column] = None
    table = table[[*COLUMNS, *(column for column in table if column not in COLUMNS)]].astype("string")
    if table[["clip_id", "path", "corpus"]].isna().any(axis=None):
        raise CorpusError("a clip has no clip_id, path or corpus")
    twice = table["clip_id"][table["clip_id"].duplicated()]
    if len(twice):
        raise CorpusError(f"the clip_id {twice.iloc[0]!r} occurs twice in the table")
    return table.sort_values("clip_id", ignore_index=True)


def clip_id(corpus: str, path: PurePath, *, marked: bool = False) -> str:
    """Return an id for a clip: its corpus and its path without suffix.

    Characters that a file name cannot hold are replaced. An altered path gets a checksum, so that different paths have
    different ids.

    Args:
        corpus: name of the corpus.
        path: path of the recording.
        marked: add the checksum in any case, for paths that differ only by their suffix.
    """
    text = path_text(path.with_suffix(""))
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)[-120:].lstrip(".")
    mark = "" if plain == text and not marked else "-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{corpus}_{plain}{mark}"


def _without_duplicates(rows: list[Fields], rejected: list[tuple[str, str]]) -> Iterator[Fields]:
    """Yield the rows whose recording and id are new; add the others to `rejected`.

    Only files of equal size can be equal, so only those are read.
    """
    places = [place(str(row["path"])) for row in rows]
    with ThreadPoolExecutor(FETCHERS) as pool:
        sizes = list(pool.map(_size, places))
        counts = Counter(sizes)
        alike = [size > 0 and counts[size] > 1 for size in sizes]
        marks = list(pool.map(lambda path, read: _checksum(path) if read else str(path), places, alike))
    contents: dict[str, Fields] = {}
    ids: dict[str, str] = {}
    for row, mark in zip(rows, marks, strict=True):
        path, name = str(row["path"]), str(row["clip_id"])
        same = contents.setdefault(mark, row)
        if same["path"] != path:
            other = f", which is labelled {same['emotion']}" if same["emotion"] != row["emotion"] else ""
            rejected.append((path_text(path), f"is the same recording as {printable(str(same['path']))}{other}"))
            continue
        first = ids.setdefault(name, path)
        if first != path:
            rejected.append((path_text(path), f"has the same id as {printable(first)}, but different content"))
            continue
        yield row


def _size(path: Place) -> int:
    if isinstance(path, Address):
        signature = path.sign()
        return -1 if signature is None else signature[0]
    return path.stat().st_size if path.is_file() else -1  # rendering will report the error


def _checksum(path: Place) -> str:
    """Return the SHA-1 of a file, or its path if it cannot be read: rendering will report the error."""
    try:
        if isinstance(path, Address):
            return hashlib.sha1(path.read_bytes()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest()
    except (OSError, SpectroError):
        return str(path)
