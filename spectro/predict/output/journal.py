"""The journal of a run over many recordings, from which a killed run resumes.

The journal of `predictions.csv` is `.predictions.csv.journal` beside it, in JSON lines. The first line identifies what
rows depend on (the checkpoint, and the settings that change results; not batch size or device). Each other line is one
recording: its path, its signature, and its row. Lines are appended and synced to disk one batch at a time; a line that
a kill cut off is dropped when the journal is read. If a recording has several lines, the last counts. Tables are built
from the journal, so a run that was killed and resumed ends with the same rows as one that was not.

A row is valid as long as the recording at its absolute path has the same signature: size, modification time, change
time, and inode number. A tool that replaces a recording can keep size and modification time, but not the other two.
A copy of a folder has other paths, and is classified again. So is a folder that was restored from a backup, or whose
network drive renumbers its files: that costs time, but never gives a wrong row. Contents are not compared, since that
would read every recording whole whenever a run resumes.

Journals from before these rules have neither absolute paths nor change times: their rows are computed again, except for
recordings that are gone from a followed folder.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

from spectro.addresses import Place, place, sign_at
from spectro.files import Appended, Signature, replacing
from spectro.predict.output.tables import Record


def beside(out: Path) -> Path:
    """Return the path of a table's journal."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.journal")


def is_journal(path: Path) -> bool:
    """Return whether a file is the journal of a table, which makes the table ours."""
    try:
        with path.open(encoding="ascii", errors="replace") as lines:
            return "identity" in json.loads(next(lines, ""))
    except (OSError, ValueError, TypeError):
        return False


class Journal:
    """An open journal; use it as a context manager, in a run that holds the table's lock.

    Args:
        path: path of the journal. Rows that are still valid are kept, others are dropped.
        identity: fingerprint of what rows depend on; all rows of a journal with another identity are dropped.
        wanted: the recordings of this run, by absolute path; rows of others are dropped. None keeps rows of recordings
            that are gone.

    Attributes:
        done: signatures of the recordings that have a row, by path.
        dropped: number of rows dropped because of another identity, or because an earlier version recorded too little.
        superseded: whether a recording was entered again.
    """

    def __init__(self, path: Path, identity: str, wanted: Iterable[Place] | None, *, fresh: bool = False) -> None:
        self._path = path
        self.done: dict[str, Signature | None] = {}
        self.dropped = 0
        self.superseded = False
        names = None if wanted is None else {os.fspath(one): one for one in wanted}
        with replacing(path) as temporary:
            kept = Appended(path, temporary)
            try:
                kept.write(json.dumps({"identity": identity}) + "\n")
                for line, entry in () if fresh else _entries(path):
                    if entry["identity"] == identity and self._stands(entry, names):
                        kept.write(line)
                        self.done[entry["path"]] = _signature(entry)
                    elif entry["identity"] != identity or _signature(entry) is None:
                        self.dropped += 1
            finally:
                kept.close()
        self._stream = Appended(path)
        self._unsigned: dict[str, Record] = {}

    def _stands(self, entry: dict[str, Any], names: dict[str, Place] | None) -> bool:
        """Return whether a row is still valid; without `names`, a recording that is gone keeps its row.

        A recording that could not be used is tried again: the cause, such as a permission, may not show in the file.
        """
        where = place(entry["path"]) if names is None else names.get(entry["path"])
        if where is None:
            return False
        signature = sign_at(where)
        if entry["row"].get("error") and signature is not None:
            return False
        if signature is None:
            return names is None
        return signature == _signature(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, entries: Iterable[tuple[Place, Signature | None, Record]]) -> None:
        """Enter recordings, their signatures from before they were read, and their rows; they are on disk on return.

        A recording that has no signature is not on disk, so that the next run tries it again.
        """
        lines = []
        for path, signature, record in entries:
            name = os.fspath(path)
            self.superseded |= name in self.done
            self.done[name] = signature
            self._unsigned.pop(name, None)
            if signature is None:
                self._unsigned[name] = record
            else:
                lines.append(json.dumps({"path": name, "signature": signature, "row": record}) + "\n")
        self._stream.write("".join(lines))
        self._stream.sync()

    def records(self, size: int = 1000) -> Iterator[list[Record]]:
        """Yield the valid rows in batches of `size`: in the order of entry, those without a signature at the end."""
        entries = (_entries if self.superseded else _lines)(self._path)
        while some := [entry["row"] for _line, entry in islice(entries, size)]:
            yield some
        if self._unsigned:
            yield list(self._unsigned.values())


def _signature(entry: dict[str, Any]) -> Signature | None:
    """Return a line's signature; None if an earlier version recorded too little of it."""
    found = tuple(entry["signature"])
    return found if len(found) == 4 else None


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the last complete line of each recording in a journal, with its content and the journal's identity."""
    last = {entry["path"]: number for number, (_line, entry) in enumerate(_lines(path))}
    for number, (line, entry) in enumerate(_lines(path)):
        if last.get(entry["path"]) == number:
            yield line, entry


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the complete lines of a journal after the first, each with its content and the journal's identity."""
    if not path.is_file():
        return
    with path.open(encoding="ascii", errors="replace") as lines:
        identity = None
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if not isinstance(entry, dict):
                continue
            if "identity" in entry:
                identity = entry["identity"]
            elif line.endswith("\n") and {"path", "signature", "row"} <= set(entry):
                yield line, {**entry, "identity": identity}
