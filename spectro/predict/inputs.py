"""The recordings that inputs name: files, folders with all subfolders, and lists; local, or at an address."""

import csv
import io
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from spectro.addresses import Address, Place, is_address, place
from spectro.audio.recording import SUFFIXES, recordings
from spectro.errors import PredictionError
from spectro.files import MESSAGE, printable


def expand(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Place]:
    """Yield the recordings that inputs name: files as given, folders with all subfolders, lists line by line.

    An input, or a line of a list, may be an address such as s3://bucket/calls. Paths are made absolute, so that they
    are valid wherever a table is read. Links are not followed. At most one folder is in memory at a time.

    Raises:
        PredictionError: there is no input, an input does not exist, or a list cannot be read.
        OSError: an address cannot be accessed.
    """
    places = [place(given) for given in inputs]
    if not places:
        raise PredictionError("nothing to predict: name recordings, folders or lists")
    found = [_expand_one(one) for one in places]  # checks that each exists before the first is searched
    return (_absolute(one) for one in chain.from_iterable(found))


def _absolute(path: Place) -> Place:
    """Return an absolute path; links are resolved only in a path with `..`, and only in its folder."""
    if isinstance(path, Address):
        return path
    return path.parent.resolve() / path.name if ".." in path.parts else path.absolute()


def _expand_one(path: Place) -> Iterable[Place]:
    """Return the recordings that one input names."""
    if isinstance(path, Address):
        kind = "folder" if path.url.endswith("/") else path.kind()
    else:
        kind = "folder" if path.is_dir() else "file" if os.path.lexists(path) else None
    if kind is None:
        raise PredictionError(f"{printable(path)}: does not exist")
    if kind == "folder":
        return recordings(path) if isinstance(path, Path) else (one for one in path.files() if _is_recording(one))
    return _read_list(path) if path.suffix.lower() in (".txt", ".csv") else [path]


def _is_recording(address: Address) -> bool:
    return address.suffix.lower() in SUFFIXES and not address.name.startswith(".")


def _read_list(path: Place) -> Iterator[Place]:
    """Yield the paths that a list names, relative to the list's folder.

    Raises:
        PredictionError: the list cannot be read, or has no column of paths; raised before anything is yielded if its
            first lines show it.
    """
    names = _names_in(path)
    first = next(names, None)
    return (_from_list(path, name) for name in chain([] if first is None else [first], names))


def _from_list(path: Place, name: str) -> Place:
    if is_address(name):
        return place(name)
    if isinstance(path, Address):  # addresses do not support ..
        return path.parent / posixpath.normpath(name) if not name.startswith("/") else place(name)
    return path.parent / name


def _names_in(path: Place) -> Iterator[str]:
    """Yield the non-empty lines of a list, or the non-empty cells of a CSV's column `path`."""
    try:
        with ExitStack() as stack:
            opened = path.opened() if isinstance(path, Address) else path.open("rb")
            text = io.TextIOWrapper(stack.enter_context(opened), encoding="utf-8-sig", newline="")
            if path.suffix.lower() == ".csv":
                rows = csv.DictReader(text)
                if "path" not in (rows.fieldnames or ()):
                    raise ValueError("it has no column named path")
                yield from (row["path"] for row in rows if row["path"])
            else:
                yield from (line for line in map(_without_end, text) if line.strip())
    except (OSError, ValueError, csv.Error) as error:
        reason = printable(str(error))
        raise PredictionError(f"{printable(path)}: is not a readable list of paths ({reason})") from error


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def local(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the inputs on this machine, which no output may overwrite."""
    return [one for one in map(place, places) if isinstance(one, Path)]


def stems(paths: Sequence[Place]) -> list[Path]:
    """Return a name for the output of each recording: its path below the folder that all share, without its suffix.

    Recordings that differ only in their suffix keep it, and so do those whose name would be another's. No two
    recordings have one name.
    """
    places = [
        Path(os.path.normpath(Path("/", *one.url.split("/")) if isinstance(one, Address) else one.absolute()))
        for one in paths
    ]  # a/../b is not below a
    root = os.path.commonpath([place.parent for place in places])
    names = [place.relative_to(root) for place in places]
    whole: set[Path] = set()
    while True:
        found = [name if name in whole else name.with_suffix("") for name in names]
        times = Counter(found)
        alike = {name for name, short in zip(names, found, strict=True) if times[short] > 1}
        if alike <= whole:
            return found
        whole |= alike


def reason_of(error: Exception, path: Place) -> str:
    """Return an error's message without the recording's path, which is shown beside it."""
    return printable(str(error).removeprefix(f"{printable(path)}: "), MESSAGE)
