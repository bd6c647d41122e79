"""The clip table: one row a clip, the same columns for every corpus.

Columns, all text: `clip_id` (unique, usable as a file name), `path`, `corpus`, `emotion`, `speaker`, `gender`
(`female` or `male`), `language` (ISO 639-1), and what the corpus adds: `votes_<emotion>`, how many listeners heard it;
`age` in years, `race` and `ethnicity` of the speaker; and columns of its own. What a corpus does not tell is missing.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeAlias

import pandas as pd

from spectro.audio.recording import recordings
from spectro.errors import CorpusError
from spectro.files import path_text, printable

COLUMNS = ("clip_id", "path", "corpus", "emotion", "speaker", "gender", "language")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised", "bored")
"""The emotions of all corpora, in the order in which labels are numbered."""
VOTES = "votes_"
"""What the names of columns with listeners' votes begin with; an emotion, or a label, follows."""

Fields: TypeAlias = dict[str, str | None]
Parser: TypeAlias = Callable[[PurePath], Fields]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus of speech and how its files are read.

    Args:
        name: name on the command line.
        title: full name.
        emotions: all classes that the corpus has, whether or not they are there; empty if the folder says.
        language: ISO 639-1 code, or None if the folder says.
        licence: licence of the recordings, which a checkpoint trained on them inherits.
        homepage: where it is described or had.
        voices: name of the group of speakers, where several corpora share them; None for its own.
        open: takes the corpus's folder, returns a parser: path below the folder -> `emotion`, `speaker`, `gender` and
            further fields. A parser raises CorpusError, with the reason, for a file that does not fit.
        files: takes the corpus's folder, yields the recordings; those that `visible_recordings` finds if not told.
        remarks: takes the corpus's folder and its clip table, returns what a person should know of how they were
            understood; raises CorpusError for a table that does not fit.
    """

    name: str
    title: str
    emotions: tuple[str, ...]
    language: str | None
    licence: str
    homepage: str
    voices: str | None = None
    open: Callable[[Path], Parser]
    files: Callable[[Path], Iterable[Path]] = field(default_factory=lambda: visible_recordings)
    remarks: Callable[[Path, pd.DataFrame], list[str]] = lambda _root, _clips: []


@dataclass(frozen=True)
class Scan:
    """What was found in a folder.

    Args:
        clips: the clip table, ordered by `clip_id`.
        rejected: columns `path, reason`: recordings that are not in the table.
        remarks: what a person should know of how the folder was understood, a sentence each.
    """

    clips: pd.DataFrame
    rejected: pd.DataFrame
    remarks: tuple[str, ...] = ()


def visible_recordings(root: Path, below: Path | None = None) -> Iterator[Path]:
    """Yield the recordings under `root`, but for those in hidden folders and in what a Mac adds to archives.

    Args:
        root: a folder.
        below: the folder whose own name may be anything; None for `root`.
    """
    for path in recordings(root):
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(below or root).parts):
            yield path


def scan_corpus(corpus: Corpus, root: Path) -> Scan:
    """List the clips of `corpus` under `root`: parse every recording, drop duplicates, list what does not fit.

    Raises:
        CorpusError: `root` is not a folder (or table) that can be read, or holds no clip of this corpus.
    """
    if not root.exists():
        raise CorpusError(f"{printable(root)}: is not there; name the folder that holds {corpus.title} with --source")
    parse = corpus.open(root)
    rows: list[Fields] = []
    rejected: list[tuple[str, str]] = []
    base = root if root.is_dir() else root.parent
    for path in sorted(corpus.files(root)):
        relative = PurePath(os.path.relpath(path, base))
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
            f"{printable(root)}: holds no clip of {corpus.title} ({len(rejected)} recordings do not fit{example})"
        )
    clips = make_table(kept)
    return Scan(clips, listed, tuple(corpus.remarks(root, clips)))


def make_table(rows: list[Fields]) -> pd.DataFrame:
    """Return a clip table ordered by `clip_id`, all columns text.

    Raises:
        CorpusError: a clip has no id, path or corpus, or an id stands twice.
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
        raise CorpusError(f"the clip_id {twice.iloc[0]!r} stands twice in the table")
    return table.sort_values("clip_id", ignore_index=True)


def clip_id(corpus: str, path: PurePath) -> str:
    """Return an id for a clip from its path: corpus and path, with what a file name cannot hold replaced.

    A path that had to be changed gets a checksum, so that different paths keep different ids.
    """
    text = path_text(path.with_suffix(""))
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)[-120:].lstrip(".")
    mark = "" if plain == text else "-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{corpus}_{plain}{mark}"


def _without_duplicates(rows: list[Fields], rejected: list[tuple[str, str]]) -> Iterator[Fields]:
    """Yield the rows whose recording, and whose id, has not come before; add the others to `rejected`.

    Only files of equal size can be equal, so only those are read.
    """
    sizes: defaultdict[int, int] = defaultdict(int)
    for row in rows:
        sizes[_size(row)] += 1
    contents: dict[str, Fields] = {}
    ids: dict[str, str] = {}
    for row in rows:
        path, name = str(row["path"]), str(row["clip_id"])
        if (size := _size(row)) > 0 and sizes[size] > 1:
            same = contents.setdefault(_checksum(Path(path)), row)
            if same["path"] != path:
                other = f", which is labelled {same['emotion']}" if same["emotion"] != row["emotion"] else ""
                rejected.append((path_text(path), f"is the same recording as {printable(str(same['path']))}{other}"))
                continue
        first = ids.setdefault(name, path)
        if first != path:
            rejected.append((path_text(path), f"has the same id as {printable(first)}, with other content"))
            continue
        yield row


def _size(row: Fields) -> int:
    path = Path(str(row["path"]))
    return path.stat().st_size if path.is_file() else -1  # rendering will say what is wrong with it


def _checksum(path: Path) -> str:
    """Return the SHA-1 of a file; of one that cannot be read, its path: rendering will say why."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest()
    except OSError:
        return str(path)
