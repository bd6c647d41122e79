"""A table in parts that many processes write: Parquet files in a folder or at an address, without another journal.

A file is complete once it exists. Its metadata hold, for each of its recordings, a 64-bit key of path and signature,
the number of rows, and whether it could be used. A row is valid as long as a recording of the run has this key (by the
rules of `journal`); recordings that could not be used are tried again. So a run that was killed, on whatever machine,
resumes from the files that exist. The chance that two of ten million recordings have the same key is three in
a million; the second of them would get no row.
"""

import base64
import hashlib
import io
import json
import os
import secrets
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spectro.addresses import Address, Place, sign_at
from spectro.errors import PredictionError
from spectro.files import Signature, printable, remove_leftovers, write_bytes
from spectro.predict.output.tables import PART, Record, arrow_schema, shards

Keys: TypeAlias = npt.NDArray[np.uint64]

METADATA = b"spectro"
TOGETHER = 64
"""Files read at a time when a run starts or ends, at an address."""
TOGETHER_HERE = 2
"""The same for a folder: each thread keeps memory of its own, and waits less."""


class Contents(NamedTuple):
    """The metadata of a file.

    Args:
        identity: fingerprint of what its rows depend on; None for an incomplete file.
        keys: keys of its recordings, uint64 of shape (recordings,).
        rows: number of rows of each recording, int64 of shape (recordings,).
        failed: which recordings could not be used, bool of shape (recordings,).
    """

    identity: str | None
    keys: Keys
    rows: npt.NDArray[np.int64]
    failed: npt.NDArray[np.bool_]


class Answered(NamedTuple):
    """The key of a recording, and all its rows."""

    key: int
    records: list[Record]


def key_of(path: str, signature: Signature | str) -> int:
    """Return a 64-bit key that identifies a listed recording.

    Args:
        path: its path or address.
        signature: its signature, or a text in place of one that is not known.
    """
    text = json.dumps([path, signature])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


class Listing:
    """The recordings of a run, on disk, so that memory does not grow with their number; use it as a context manager.

    Args:
        places: the recordings; duplicates count once.

    Attributes:
        keys: their keys, ascending, uint64 of shape (recordings,).
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._lines = TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  it is closed with the listing
        keys = array("Q")
        unknown = secrets.token_hex(8)  # a recording without a signature has no row from an earlier run
        try:
            for one in places:
                path = os.fspath(one)
                keys.append(key_of(path, sign_at(one) or unknown))
                self._lines.write(json.dumps([path, keys[-1]]) + "\n")
        except BaseException:
            self._lines.close()
            raise
        self.keys: Keys = _distinct(np.frombuffer(keys, np.uint64)) if keys else np.zeros(0, np.uint64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def without(self, done: npt.NDArray[np.bool_]) -> Iterator[tuple[str, int]]:
        """Yield path and key of each recording that has no row yet, in the order of the listing.

        Args:
            done: whether the recording of each key has a row.
        """
        given = done.copy()
        self._lines.seek(0)
        for line in self._lines:
            path, key = json.loads(line)
            at = np.searchsorted(self.keys, np.uint64(key))
            if not given[at]:
                given[at] = True
                yield path, key


def _distinct(keys: Keys) -> Keys:
    """Return the distinct keys, ascending; sorts its argument, and returns it if there are no duplicates."""
    keys.sort()
    first = np.append(True, keys[1:] != keys[:-1])
    return keys if first.all() else keys[first]


class Parts:
    """The files of a table.

    Args:
        folder: folder or address of the files.
        identity: fingerprint of what rows depend on; files of another identity are removed.
        fresh: remove all files.

    Attributes:
        dropped: number of rows of another identity that were removed.

    Raises:
        PredictionError: a file in the folder is named like a part, but this kind of run did not make it.
        OSError: the folder cannot be read.
    """

    def __init__(self, folder: Place, identity: str, *, fresh: bool = False) -> None:
        self.folder, self._identity = folder, identity
        self.dropped = 0
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        for part, known in self._contents():
            if known.identity != identity or fresh:
                self.dropped += int(known.rows.sum()) * (known.identity != identity)
                _remove(part)

    def next_number(self) -> int:
        """Return the number of the next file."""
        names = [PART.fullmatch(part.name) for part in parts_in(self.folder)]
        return 1 + max((int(name["number"]) for name in names if name), default=-1)

    def keep(self, wanted: Keys, *, failed: bool) -> npt.NDArray[np.bool_]:
        """Remove rows whose recording is not in the run, or already has rows; affected files are rewritten.

        Files of another identity are removed: processes of a killed run may write them after this run has begun.

        Args:
            wanted: keys of the run's recordings, ascending.
            failed: also keep the rows of recordings that could not be used.

        Returns:
            whether the recording of each key has its rows.
        """
        seen = np.zeros(len(wanted), np.bool_)
        for part, known in self._contents():
            if known.identity != self._identity:
                _remove(part)
                continue
            keys = known.keys
            at = np.minimum(np.searchsorted(wanted, keys), max(0, len(wanted) - 1))
            stands = (wanted[at] == keys) & ~seen[at] if len(wanted) else np.zeros(len(keys), np.bool_)
            first = np.zeros(len(keys), np.bool_)
            first[np.unique(keys, return_index=True)[1]] = True
            stands &= first if failed else first & ~known.failed
            seen[at[stands]] = True
            if not stands.all():
                self._rewrite(part, known, stands)
        return seen

    def failed(self) -> tuple[int, int]:
        """Return how many recordings failed, wholly or in part, and how many of these have no other row."""
        own = (known for _part, known in self._contents() if known.identity == self._identity)
        failed = [known.rows[known.failed] for known in own]
        return sum(map(len, failed)), sum(int((one == 1).sum()) for one in failed)

    def records(self, size: int = 1000) -> Iterator[list[Record]]:
        """Yield all rows in the order in which the recordings were handed out, at most `size` at a time."""
        for part, known in self._contents():
            if known.identity != self._identity:
                continue
            for rows in pq.ParquetFile(_content(part)).iter_batches(size):
                yield rows.to_pylist()

    def _contents(self) -> Iterator[tuple[Place, Contents]]:
        """Yield the files with their metadata, some read at a time."""
        remaining = iter(parts_in(self.folder))
        with ThreadPoolExecutor(TOGETHER if isinstance(self.folder, Address) else TOGETHER_HERE) as pool:
            while some := list(islice(remaining, TOGETHER)):
                yield from zip(some, pool.map(_contents, some), strict=True)

    def _rewrite(self, part: Place, known: Contents, stands: npt.NDArray[np.bool_]) -> None:
        if not stands.any():
            _remove(part)
            return
        table = pq.read_table(_content(part)).filter(pa.array(np.repeat(stands, known.rows)))
        kept = Contents(self._identity, known.keys[stands], known.rows[stands], known.failed[stands])
        _put(part, _with_metadata(table, kept))


def parts_in(folder: Place) -> list[Place]:
    """Return the files of a table in parts, in order."""
    if isinstance(folder, Path):
        return [*shards(folder)]
    if folder.kind() is None:
        return []
    return sorted((one for one in folder.files(below=False) if PART.fullmatch(one.name)), key=str)


def write_part(folder: Place, name: str, answered: Sequence[Answered], columns: Sequence[str], identity: str) -> None:
    """Write the rows of some recordings to one file.

    Args:
        folder: folder to write to.
        name: name of the file.
        answered: the recordings and their rows.
        columns: columns of the table.
        identity: fingerprint of what rows depend on.
    """
    table = pa.Table.from_pylist([record for one in answered for record in one.records], schema=arrow_schema(columns))
    keys = np.array([one.key for one in answered], np.uint64)
    rows = np.array([len(one.records) for one in answered], np.int64)
    failed = np.array([any(record["error"] for record in one.records) for one in answered], np.bool_)
    _put(folder / name, _with_metadata(table, Contents(identity, keys, rows, failed)))


def _with_metadata(table: pa.Table, contents: Contents) -> pa.Table:
    metadata = {
        "identity": contents.identity,
        "keys": base64.b64encode(contents.keys.astype("<u8").tobytes()).decode(),
        "rows": contents.rows.tolist(),
        "failed": np.flatnonzero(contents.failed).tolist(),
    }
    return table.replace_schema_metadata({METADATA: json.dumps(metadata).encode()})


def _contents(part: Place) -> Contents:
    """Return a file's metadata; an incomplete file has no recordings and no identity."""
    try:
        found = pq.read_schema(_content(part)).metadata or {}
    except (pa.ArrowInvalid, EOFError):
        return Contents(None, np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    if METADATA not in found:
        raise PredictionError(
            f"{printable(part)}: already exists, and this kind of run did not make it; choose another --out, or move "
            "it away"
        )
    metadata = json.loads(found[METADATA])
    keys = np.frombuffer(base64.b64decode(metadata["keys"]), "<u8").astype(np.uint64)
    failed = np.zeros(len(keys), np.bool_)
    failed[metadata["failed"]] = True
    return Contents(metadata["identity"], keys, np.array(metadata["rows"], np.int64), failed)


def _content(part: Place) -> Any:
    return io.BytesIO(part.read_bytes()) if isinstance(part, Address) else part


def _put(part: Place, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content)
    if isinstance(part, Address):
        part.write_bytes(content.getvalue())
    else:
        write_bytes(part, content.getvalue())


def _remove(part: Place) -> None:
    part.remove() if isinstance(part, Address) else part.unlink()
