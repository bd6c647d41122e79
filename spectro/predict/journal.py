"""What a run over many recordings has done, so that a killed one goes on where it was.

The journal of `predictions.csv` is `.predictions.csv.journal` beside it: JSON lines. The first says what rows depend on
(the checkpoint, and the settings that change results; not batch size or device). Each other line is one recording: its
path, size, modification time, and its row. Lines are appended and brought to the disk a batch at a time; a line that a
kill cut off is dropped when the journal is read. A row stands as long as its recording's size and modification time do;
tables are made from the journal, so that a run that was killed ends with the rows of one that was not.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeAlias

from spectro.errors import PredictionError
from spectro.files import printable, replacing
from spectro.predict.tables import Record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Signature: TypeAlias = tuple[int, int]


def sign(path: Path) -> Signature | None:
    """Return a file's size in bytes and its modification time in nanoseconds; None if it cannot be looked at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def beside(out: Path) -> Path:
    """Return where the journal of a table lies."""
    place = out.resolve()
    return place.with_name(f".{place.name}.journal")


class Journal:
    """An open journal; use it as a context.

    Args:
        path: where it lies. Rows that still stand are kept, others are dropped.
        identity: what rows depend on; rows of a journal with another identity are all dropped.
        wanted: the recordings of this run; rows of others are dropped. None keeps rows of recordings that have gone.

    Raises:
        PredictionError: another run writes to the same table.

    Attributes:
        done: the recordings that have a row.
        dropped: rows of another identity that were dropped.
    """

    def __init__(self, path: Path, identity: str, wanted: Iterable[Path] | None, *, fresh: bool = False) -> None:
        self._path = path
        self.done: set[str] = set()
        self.dropped = 0
        names = None if wanted is None else {os.fspath(one) for one in wanted}
        self._refuse_if_in_use()
        with replacing(path) as temporary, temporary.open("w", encoding="ascii") as kept:
            kept.write(json.dumps({"identity": identity}) + "\n")
            for line, entry in () if fresh else _entries(path):
                if entry["identity"] != identity:
                    self.dropped += 1
                elif entry["path"] not in self.done and self._stands(entry, names):
                    kept.write(line)
                    self.done.add(entry["path"])
        self._stream = path.open("a", encoding="ascii")
        if fcntl is not None:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _refuse_if_in_use(self) -> None:
        if fcntl is None or not self._path.is_file():
            return
        with self._path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise PredictionError(f"{printable(self._path)}: another run writes to this table") from error

    def _stands(self, entry: dict[str, Any], names: set[str] | None) -> bool:
        """Tell whether a row is still that of its recording; with all wanted, one that has gone keeps its row.

        What could not be used is tried again: what stood in the way, such as a permission, may not show in the file.
        """
        if entry["row"].get("error") and Path(entry["path"]).exists():
            return False
        signature = sign(Path(entry["path"]))
        if names is None:
            return signature in (None, tuple(entry["signature"]))
        return entry["path"] in names and signature == tuple(entry["signature"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, entries: Iterable[tuple[Path, Signature | None, Record]]) -> None:
        """Enter recordings, how they were signed before they were read, and their rows; on the disk on return.

        A recording that could not even be looked at is not entered, so that the next run tries it again.
        """
        for path, signature, record in entries:
            name = os.fspath(path)
            self.done.add(name)
            if signature is not None:
                self._stream.write(json.dumps({"path": name, "signature": signature, "row": record}) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def records(self, size: int = 1000) -> Iterator[list[Record]]:
        """Yield the rows that stand, in the order in which they were entered, some at a time."""
        entries = _entries(self._path)
        while some := [entry["row"] for _line, entry in islice(entries, size)]:
            yield some


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the whole lines of a journal after its first, each with its content and the journal's identity."""
    if not path.is_file():
        return
    with path.open(encoding="ascii", errors="replace") as lines:
        identity = None
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "identity" in entry:
                identity = entry["identity"]
            elif line.endswith("\n"):
                yield line, {**entry, "identity": identity}
