"""Which recordings a person names: files, folders with all folders below, and lists; here, or at an address."""

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
    """Yield the recordings that inputs name: files as they are, folders with all folders below, lists line by line.

    Each may be an address, such as s3://bucket/calls; so may the lines of a list. Paths are absolute, so that they say
    the same wherever a table is read. Links are not followed. No more than a folder is in memory at a time.

    Raises:
        PredictionError: nothing is named, an input is not there, or a list cannot be read.
        OSError: an address cannot be looked at.
    """
    places = [place(given) for given in inputs]
    if not places:
        raise PredictionError("nothing to predict: name recordings, folders or lists")
    found = [_expand_one(one) for one in places]  # which looks whether each is there before the first is searched
    return (_absolute(one) for one in chain.from_iterable(found))


def _absolute(path: Place) -> Place:
    """Return an absolute path; only what .. leads out of is looked up."""
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
        raise PredictionError(f"{printable(path)}: is not there")
    if kind == "folder":
        return recordings(path) if isinstance(path, Path) else (one for one in path.files() if _is_recording(one))
    return _read_list(path) if path.suffix.lower() in (".txt", ".csv") else [path]


def _is_recording(address: Address) -> bool:
    return address.suffix.lower() in SUFFIXES and not address.name.startswith(".")


def _read_list(path: Place) -> Iterator[Place]:
    """Yield the paths that a list names, relative to the list's folder.

    Raises:
        PredictionError: it cannot be read, or has no column of paths; before anything is yielded where its first lines
            tell.
    """
    names = _names_in(path)
    first = next(names, None)
    return (_from_list(path, name) for name in chain([] if first is None else [first], names))


def _from_list(path: Place, name: str) -> Place:
    if is_address(name):
        return place(name)
    if isinstance(path, Address):  # which knows no ..
        return path.parent / posixpath.normpath(name) if not name.startswith("/") else place(name)
    return path.parent / name


def _names_in(path: Place) -> Iterator[str]:
    """Yield the lines of a list, or the column path of a CSV, as far as they hold something."""
    try:
        with ExitStack() as stack:
            opened = path.opened() if isinstance(path, Address) else path.open("rb")
            text = io.TextIOWrapper(stack.enter_context(opened), encoding="utf-8-sig", newline="")
            if path.suffix.lower() == ".csv":
                rows = csv.DictReader(text)
                if "path" not in (rows.fieldnames or ()):
                    raise ValueError("it has no column path")
                yield from (row["path"] for row in rows if row["path"])
            else:
                yield from (line for line in map(_without_end, text) if line.strip())
    except (OSError, ValueError, csv.Error) as error:
        reason = printable(str(error))
        raise PredictionError(f"{printable(path)}: is not a readable list of paths ({reason})") from error


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def local(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return what lies on this machine, which no output may be written over."""
    return [one for one in map(place, places) if isinstance(one, Path)]


def stems(paths: Sequence[Place]) -> list[Path]:
    """Return a name for what is made of each recording: its path under the folder that all share, without its ending.

    Recordings that differ by nothing but their ending keep it.
    """
    places = [
        Path(os.path.normpath(Path("/", *one.url.split("/")) if isinstance(one, Address) else one.absolute()))
        for one in paths
    ]  # what .. leads out of is not below
    root = os.path.commonpath([place.parent for place in places])
    names = [place.relative_to(root) for place in places]
    times = Counter(name.with_suffix("") for name in names)
    return [name if times[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]


def reason_of(error: Exception, path: Place) -> str:
    """Return what an error says of a recording, without its path, which stands beside it."""
    return printable(str(error).removeprefix(f"{printable(path)}: "), MESSAGE)
