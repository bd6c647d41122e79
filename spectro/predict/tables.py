"""Tables that rows are added to while they are made: CSV, Parquet (one file, or shards in a folder), JSON.

A CSV and JSON lines are there as far as they have come; the others are there when they are whole.
"""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeAlias

from spectro.errors import PredictionError
from spectro.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

Record: TypeAlias = dict[str, Any]

ENDINGS = (".csv", ".parquet", ".json", ".jsonl", "")
SHARD_ROWS = ROWS_IN_GROUP = 10_000


class Table(Protocol):
    """A table that rows are added to."""

    def add(self, records: list[Record]) -> None:
        """Add rows."""

    def close(self) -> None:
        """Write what is still to be written; not called when the run failed."""


class CsvTable:
    """CSV; a row is on its way to the disk when `add` returns.

    Args:
        stream: where to write.
        names: the columns.
    """

    def __init__(self, stream: TextIO, names: Sequence[str]) -> None:
        self._stream = stream
        self._writer = csv.DictWriter(stream, names, lineterminator="\n")
        self._writer.writeheader()

    def add(self, records: list[Record]) -> None:
        """Add rows."""
        self._writer.writerows({name: _text(value) for name, value in record.items()} for record in records)
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: all is written."""


class JsonTable:
    """A JSON list, or one JSON object a line.

    Args:
        stream: where to write.
        lines: one object a line, without the list around them.
    """

    def __init__(self, stream: TextIO, *, lines: bool) -> None:
        self._stream, self._lines = stream, lines
        self._before = "" if lines else "[\n"

    def add(self, records: list[Record]) -> None:
        """Add rows."""
        for record in records:
            self._stream.write(self._before + json.dumps(record, ensure_ascii=False, allow_nan=False))
            if self._lines:
                self._stream.write("\n")
            else:
                self._before = ",\n"
        self._stream.flush()

    def close(self) -> None:
        """End the list."""
        if not self._lines:
            self._stream.write("[]\n" if self._before == "[\n" else "\n]\n")


class ParquetTable:
    """A Parquet file, with row groups of `ROWS_IN_GROUP`.

    Args:
        path: where to write.
        names: the columns.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        import pyarrow.parquet as pq  # a CSV does without its half a second

        self._schema = _schema(names)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._waiting: list[Record] = []

    def add(self, records: list[Record]) -> None:
        """Add rows; a group is written when it is full."""
        self._waiting += records
        if len(self._waiting) >= ROWS_IN_GROUP:
            self._write()

    def close(self) -> None:
        """Write the last group, and finish the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(_arrow(self._waiting, self._schema))
        self._waiting = []


class ShardedTable:
    """A folder of Parquet files, `part-00000.parquet` and on, each whole when it is there.

    Args:
        folder: where to write; parts of an earlier run that lie there are removed.
        names: the columns.
        shard_rows: rows of each part.
    """

    def __init__(self, folder: Path, names: Sequence[str], shard_rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("part-[0-9][0-9][0-9][0-9][0-9].parquet"):
            stale.unlink()
        self._folder, self._schema, self._shard_rows = folder, _schema(names), shard_rows
        self._waiting: list[Record] = []
        self._written = 0

    def add(self, records: list[Record]) -> None:
        """Add rows; a part is written when it is full."""
        self._waiting += records
        while len(self._waiting) >= self._shard_rows:
            self._write(self._waiting[: self._shard_rows])
            del self._waiting[: self._shard_rows]

    def close(self) -> None:
        """Write the last part."""
        if self._waiting:
            self._write(self._waiting)

    def _write(self, records: list[Record]) -> None:
        import pyarrow.parquet as pq

        with replacing(self._folder / f"part-{self._written:05}.parquet") as temporary:
            pq.write_table(_arrow(records, self._schema), temporary)
        self._written += 1


def check_name(out: Path | None) -> None:
    """Raise PredictionError if no kind of table has this ending."""
    if out is not None and out.suffix not in ENDINGS:
        raise PredictionError(f"{out}: is neither .csv, .parquet, .json nor .jsonl, nor a folder for Parquet in shards")


@contextmanager
def open_table(out: Path | None, names: Sequence[str], *, shard_rows: int = SHARD_ROWS) -> Iterator[Table]:
    """Open the table that `out` names: a .csv, .parquet, .json or .jsonl, or a folder for Parquet in shards.

    Args:
        out: where to write; None for CSV on standard output.
        names: the columns.
        shard_rows: rows of each Parquet file in a folder.

    Raises:
        PredictionError: another ending.
        OSError: a place that cannot be written to.
    """
    check_name(out)
    with ExitStack() as stack:
        if out is None:
            table: Table = CsvTable(sys.stdout, names)
        elif out.suffix == ".parquet":
            table = ParquetTable(stack.enter_context(replacing(out)), names)
        elif out.suffix == "":
            table = ShardedTable(out, names, shard_rows)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(replacing(out)) if out.suffix == ".json" else out
            stream = stack.enter_context(place.open("w", newline="", encoding="utf-8"))
            table = CsvTable(stream, names) if out.suffix == ".csv" else JsonTable(stream, lines=out.suffix == ".jsonl")
        yield table
        table.close()


def _schema(names: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    text = dict.fromkeys(("path", "label", "error"), pa.string())
    kinds = {**text, "channel": pa.int64(), "embedding": pa.list_(pa.float32())}
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in names])


def _arrow(records: list[Record], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    return pa.Table.from_pylist(records, schema=schema)


def _text(value: Any) -> Any:
    """Return a number with six digits; seconds beyond a thousand with their milliseconds."""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1000 else f"{value:.3f}".rstrip("0").rstrip(".")
    return "" if value is None else value
