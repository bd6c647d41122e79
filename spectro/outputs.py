"""Ownership of output files, claimed by one run at a time, and CSV text that any program reads back.

No input is overwritten, nor any file that is not ours. A file is ours if the list `.spectro` in its folder names it. A
line of the list is a name, or a name and a mark (size and CRC-32); the last line for a name counts. Names are entered
before files are written. When a run ends, names without a file are removed, and files get their marks. A file that
does not match its mark was changed or replaced since, and is not ours. A name without a mark is ours: its run was
killed or predates marks, or it is a folder. Outputs older than these lists are recognised by files that only spectro
writes: a table's journal, a rendering's settings.

A CSV cell that a spreadsheet would take for a formula (it begins with = @ a tab or a carriage return, or with + or -
and is not a number) gets the prefix ./ if it is a path, which still names the same file, and an apostrophe otherwise.
"""

import csv
import errno
import json
import os
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectro.errors import SpectroError
from spectro.files import content_mark, held, printable, remove_leftovers, write_bytes

if TYPE_CHECKING:
    import pandas as pd

LIST, LOCK = ".spectro", ".lock"
LIST_LOCK, LIST_WAIT_S = ".spectro.lock", 60.0
LINE_END = "\r\n\0"
"""Temporary line end of rows: the csv module quotes cells that hold part of it, and no cell holds it all."""

_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d+(\.\d+)?$)")


def lock_of(out: Path) -> Path:
    """Return the lock file of an output, which is a file or a folder of shards."""
    return out.with_name(f".{out.name}{LOCK}")


@contextmanager
def claimed(
    files: Iterable[Path],
    *,
    lock: Path,
    error: type[SpectroError],
    inputs: Iterable[Path] = (),
    known: bool = False,
    edited: Container[Path] = (),
    run: str = "run",
    way_out: str = "choose another --out",
) -> Iterator[None]:
    """Claim files exclusively while the block writes them.

    Args:
        files: the files to write.
        lock: lock file of the output, the same for all runs that write it.
        error: class of the error to raise.
        inputs: the files to read, which are never overwritten.
        known: treat files that no list names as ours, too.
        edited: those of the files that may have been changed since they were written, as this run reads them first.
        run: name for a competing run in the message.
        way_out: what the user can do about a file that is not ours.

    Raises:
        SpectroError: of class `error`: a file is an input or not ours, or another run writes there.
    """
    wanted = list(files)
    check_ours(wanted, error=error, inputs=inputs, known=known, edited=edited, way_out=way_out)
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
            release(wanted)


def check_ours(
    files: Iterable[Path],
    *,
    error: type[SpectroError],
    inputs: Iterable[Path] = (),
    known: bool = False,
    edited: Container[Path] = (),
    way_out: str = "choose another --out",
) -> None:
    """Refuse to overwrite inputs and files that are not ours; the arguments are those of `claimed`.

    Raises:
        SpectroError: of class `error`: a file is an input or not ours.
    """
    there = [path for path in files if os.path.lexists(path)]
    if not there:
        return
    read = {identity for path in inputs if (identity := _identity(path)) is not None}
    lists: dict[Path, dict[str, str | None]] = {}
    for path in there:
        if _identity(path) in read:
            raise error(f"{printable(path)}: is an input, and would be overwritten; {way_out}")
        entered = lists[path.parent] if path.parent in lists else lists.setdefault(path.parent, _entered(path.parent))
        if not known and path.name not in entered:
            raise error(f"{printable(path)}: already exists, and spectro did not make it; {way_out}, or move it away")
        if path not in edited and (mark := entered.get(path.name)) and mark != _mark(path):
            raise error(f"{printable(path)}: was changed since spectro wrote it; {way_out}, or move it away")


def enter(files: Iterable[Path]) -> None:
    """Enter files that are about to be written into the lists of their folders; concurrent runs may do so.

    Raises:
        SpectroError: a list is a symbolic link, or is locked by another run.
    """
    for folder, names in _by_folder(files).items():
        with _own_list(folder):
            entered = _entered(folder)
            if new := [name for name in sorted(names) if entered.get(name, "") is not None]:
                _append(folder / LIST, "\n" + "".join(json.dumps(name) + "\n" for name in new))


def release(files: Iterable[Path]) -> None:
    """Mark files that are written, so that they are not ours once they are changed; remove names without a file."""
    for folder, names in _by_folder(files).items():
        _release(folder, names)


def cell(column: str, value: str) -> str:
    """Return a text as a CSV cell that is not taken for a formula."""
    if not _FORMULA.match(value):
        return value
    return f"./{value}" if column == "path" else f"'{value}"


def text_of(cell: str) -> str:
    """Return the text of a CSV cell that is not a path: what `cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


class _Lines(list[str]):
    """Collects the rows that a csv writer writes."""

    def write(self, row: str) -> None:
        """Append a row."""
        self.append(row.removesuffix(LINE_END) + "\n")


def rows_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV that the csv module reads back equal."""
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


@contextmanager
def _own_list(folder: Path) -> Iterator[None]:
    """Lock a folder's list while the block runs, which must be short."""
    with held(folder / LIST_LOCK, wait_s=LIST_WAIT_S) as free:
        if not free:
            raise SpectroError(f"{printable(folder / LIST)}: is locked by another run; try again when that has ended")
        yield


def _append(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    _check_no_link(path)  # for systems that cannot reject one on opening
    try:
        with os.fdopen(os.open(path, flags, 0o666), "w", encoding="ascii") as stream:
            stream.write(text)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _check_no_link(path)
        raise


def _check_no_link(path: Path) -> None:
    if path.is_symlink():
        raise SpectroError(f"{printable(path)}: is a symbolic link, which spectro does not write through; remove it")


def _entered(folder: Path) -> dict[str, str | None]:
    """Return the names in a folder's list, and their marks, if any; lines truncated by a kill are skipped.

    Raises:
        SpectroError: the list is a symbolic link.
    """
    _check_no_link(folder / LIST)
    try:
        lines = (folder / LIST).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    names: dict[str, str | None] = {}
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, str):
            names[found] = None
        elif isinstance(found, list) and len(found) == 2 and all(isinstance(one, str) for one in found):
            names[found[0]] = found[1]
    return names


def _mark(path: Path) -> str | None:
    """Return a mark of a file's content; None if it is not a regular file or cannot be read."""
    try:
        return content_mark(path)
    except OSError:
        return None


def _release(folder: Path, names: set[str]) -> None:
    """Remove names without a file from a folder's list, and add marks to the others."""
    marks = {name: _mark(folder / name) for name in names if os.path.lexists(folder / name)}
    with _own_list(folder):
        entered = _entered(folder)
        kept = {name: mark for name, mark in entered.items() if name not in names} | marks
        if kept:
            lines = [json.dumps(name if mark is None else [name, mark]) for name, mark in sorted(kept.items())]
            write_bytes(folder / LIST, "".join(f"{line}\n" for line in lines).encode())
        else:
            (folder / LIST).unlink(missing_ok=True)
