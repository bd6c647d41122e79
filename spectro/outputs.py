"""Whose a file is that a run is about to write, one run at a time, and tables of text that any program reads back.

Nothing is written over an input, nor over a file that is not ours. A file is ours when the list `.spectro` in its
folder names it; names are entered before files are written, and taken out again if a run leaves no such file. What was
written before there were such lists is known by what only spectro writes: a table's journal, a rendering's settings.

A cell of a CSV that a spreadsheet would take for a formula (it begins with = @ a tab, or with + or - and is no number)
gets ./ in front if it is a path, which names the same file, and an apostrophe otherwise.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectro.errors import SpectroError
from spectro.files import held, printable, remove_leftovers, write_bytes

if TYPE_CHECKING:
    import pandas as pd

LIST, LOCK = ".spectro", ".lock"
LINE_END = "\r\n\0"
"""Of rows in the making: the csv module quotes cells that hold a part of it, and no cell holds it all."""

_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d+(\.\d+)?$)")


def lock_of(out: Path) -> Path:
    """Return the lock file of an output that is a file, or a folder of shards."""
    return out.with_name(f".{out.name}{LOCK}")


@contextmanager
def claimed(
    files: Iterable[Path],
    *,
    lock: Path,
    error: type[SpectroError],
    inputs: Iterable[Path] = (),
    known: bool = False,
    run: str = "run",
    way_out: str = "choose another --out",
) -> Iterator[None]:
    """Have files to oneself while the block writes them.

    Args:
        files: what will be written.
        lock: lock file of the output, the same for all runs that write it.
        error: what is raised.
        inputs: what is read, never to be written over.
        known: the files are ours, whatever the lists say.
        run: what another one that writes there is called.
        way_out: what the user can do about a file that is not ours.

    Raises:
        SpectroError: of the kind `error`: a file is an input or not ours, or another run writes there.
    """
    wanted = list(files)
    check_ours(wanted, error=error, inputs=inputs, known=known, way_out=way_out)
    with held(lock) as free:
        if not free:
            where = lock.parent if lock.name == LOCK else lock.with_name(lock.name[1 : -len(LOCK)])
            raise error(f"{printable(where)}: another {run} writes there; wait, or {way_out.replace('choose', 'name')}")
        for folder, names in _by_folder(wanted).items():
            remove_leftovers(folder, names)
        enter(wanted)
        try:
            yield
        finally:
            for folder, names in _by_folder(wanted).items():
                _take_out(folder, names)


def check_ours(
    files: Iterable[Path],
    *,
    error: type[SpectroError],
    inputs: Iterable[Path] = (),
    known: bool = False,
    way_out: str = "choose another --out",
) -> None:
    """Refuse to write over inputs, and over files that are not ours.

    Raises:
        SpectroError: of the kind `error`: a file is an input or not ours.
    """
    there = [path for path in files if os.path.lexists(path)]
    if not there:
        return
    read = {identity for path in inputs if (identity := _identity(path)) is not None}
    lists: dict[Path, set[str]] = {}
    for path in there:
        if _identity(path) in read:
            raise error(f"{printable(path)}: is an input, and would be overwritten; {way_out}")
        if not known and path.name not in lists.setdefault(path.parent, _entered(path.parent)):
            raise error(f"{printable(path)}: is there already, and spectro did not make it; {way_out}, or move it away")


def enter(files: Iterable[Path]) -> None:
    """Enter files that are about to be written in the lists of their folders; several runs may do so at a time."""
    for folder, names in _by_folder(files).items():
        if new := sorted(names - _entered(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LIST).open("a", encoding="ascii") as stream:
                stream.write("\n" + "".join(json.dumps(name) + "\n" for name in new))


def cell(column: str, value: str) -> str:
    """Return a text as a cell of a CSV, kept from being a formula."""
    if not _FORMULA.match(value):
        return value
    return f"./{value}" if column == "path" else f"'{value}"


class _Lines(list[str]):
    """What a csv writer writes to: a row at a time."""

    def write(self, row: str) -> None:
        """Take a row."""
        self.append(row.removesuffix(LINE_END) + "\n")


def rows_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows of a CSV that the csv module reads back equal."""
    lines = _Lines()
    csv.writer(lines, lineterminator=LINE_END).writerows(rows)
    return "".join(lines)


def table_bytes(table: "pd.DataFrame", float_format: str | None = None) -> bytes:
    """Return a table as CSV that reads back equal, without formulas."""
    safe = table.copy()
    for name in safe.columns:
        if safe[name].dtype.kind not in "iufb":
            safe[name] = [cell(str(name), one) if isinstance(one, str) else one for one in safe[name]]
    text = safe.to_csv(index=False, float_format=float_format, lineterminator=LINE_END)
    return text.replace(LINE_END, "\n").encode()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _by_folder(files: Iterable[Path]) -> dict[Path, set[str]]:
    found: dict[Path, set[str]] = {}
    for path in files:
        found.setdefault(path.parent, set()).add(path.name)
    return found


def _entered(folder: Path) -> set[str]:
    """Return the names in a folder's list; lines that a kill cut off are passed over."""
    try:
        lines = (folder / LIST).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    names = set()
    for line in lines:
        try:
            names.add(str(json.loads(line)))
        except ValueError:
            continue
    return names


def _take_out(folder: Path, names: set[str]) -> None:
    """Take names out of a folder's list of which there is no file."""
    gone = {name for name in names if not os.path.lexists(folder / name)}
    if gone and (entered := _entered(folder)) & gone:
        kept = sorted(entered - gone)
        if kept:
            write_bytes(folder / LIST, "".join(json.dumps(name) + "\n" for name in kept).encode())
        else:
            (folder / LIST).unlink()
