"""Which recordings a person names: files, folders with all folders below, and lists."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from spectro.audio.recording import recordings
from spectro.errors import PredictionError
from spectro.files import MESSAGE, printable


def expand(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield the recordings that inputs name: files as they are, folders with all folders below, lists line by line.

    Paths are absolute, so that they say the same wherever a table is read. Links are not followed.

    Raises:
        PredictionError: nothing is named, an input is not there, or a list cannot be read.
    """
    paths = [Path(given) for given in inputs]
    if not paths:
        raise PredictionError("nothing to predict: name recordings, folders or lists")
    for path in paths:
        if not os.path.lexists(path):
            raise PredictionError(f"{printable(path)}: is not there")
    return (_absolute(found) for path in paths for found in _expand_one(path))


def _absolute(path: Path) -> Path:
    """Return an absolute path; only what .. leads out of is looked up."""
    return path.parent.resolve() / path.name if ".." in path.parts else path.absolute()


def _expand_one(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from recordings(path)
    elif path.suffix.lower() in (".txt", ".csv"):
        yield from _read_list(path)
    else:
        yield path


def _read_list(path: Path) -> list[Path]:
    """Return the paths that a list names, relative to the list's folder."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows = csv.DictReader(io.StringIO(text))
            if "path" not in (rows.fieldnames or ()):
                raise ValueError("it has no column path")
            names = [row["path"] for row in rows if row["path"]]
        else:
            names = [line for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        reason = printable(str(error))
        raise PredictionError(f"{printable(path)}: is not a readable list of paths ({reason})") from error
    return [path.parent / name for name in names]


def stems(paths: Sequence[Path]) -> list[Path]:
    """Return a name for what is made of each recording: its path under the folder that all share, without its ending.

    Recordings that differ by nothing but their ending keep it.
    """
    places = [Path(os.path.normpath(path.absolute())) for path in paths]  # what .. leads out of is not below
    root = os.path.commonpath([place.parent for place in places])
    names = [place.relative_to(root) for place in places]
    times = Counter(name.with_suffix("") for name in names)
    return [name if times[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]


def reason_of(error: Exception, path: Path) -> str:
    """Return what an error says of a recording, without its path, which stands beside it."""
    return printable(str(error).removeprefix(f"{printable(path)}: "), MESSAGE)
