"""Tables that rows are added to while they are made: CSV, Parquet (one file, or shards in a folder), JSON.

A CSV and JSON lines are there as far as they have come; the others are there when they are whole.

Paths read back equal, whatever their characters (only bytes that are not UTF-8 stand as \\xNN), but for a CSV on a
terminal, where what a terminal would obey is shown as escapes. Other text is what `files.printable` makes of it. No
cell of a CSV is a formula to a spreadsheet (see `outputs`).
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from spectro.addresses import Address, Place
from spectro.errors import PredictionError
from spectro.files import MESSAGE, Appended, json_text, printable, remove_leftovers, replacing
from spectro.outputs import cell, claimed, lock_of, rows_text

if TYPE_CHECKING:
    import pyarrow as pa

Record: TypeAlias = dict[str, Any]

ENDINGS = (".csv", ".parquet", ".json", ".jsonl", "")
SHARD_ROWS = ROWS_IN_GROUP = 10_000
PART = re.compile(r"part-(?P<number>\d{5,})(-(?P<run>[0-9a-f]{8}))?\.parquet")
"""How the files of a table in parts are called: by a number, and, where several write, by the run."""


class Table(Protocol):
    """A table that rows are added to."""

    def add(self, records: list[Record]) -> None:
        """Add rows."""

    def close(self) -> None:
        """Write what is still to be written; not called when the run failed."""


class CsvTable:
    """CSV; a row is on its way to the disk when `add` returns.

    Args:
        write: takes text.
        names: the columns.
        seen: the text goes to somebody's terminal.
    """

    def __init__(self, write: Callable[[str], Any], names: Sequence[str], *, seen: bool = False) -> None:
        self._write, self._names, self._seen = write, names, seen
        write(rows_text([names]))

    def add(self, records: list[Record]) -> None:
        """Add rows."""
        self._write(rows_text([self._text(name, record[name]) for name in self._names] for record in records))

    def close(self) -> None:
        """Do nothing: all is written."""

    def _text(self, name: str, value: Any) -> Any:
        """Return a number with six digits; seconds beyond a thousand with their milliseconds."""
        if isinstance(value, float):
            return f"{value:.6g}" if abs(value) < 1000 else f"{value:.3f}".rstrip("0").rstrip(".")
        if isinstance(value, str):
            return cell(name, value if name == "path" and not self._seen else printable(value, MESSAGE))
        return "" if value is None else value


class JsonTable:
    """A JSON list, or one JSON object a line.

    Args:
        write: takes text.
        lines: one object a line, without the list around them.
    """

    def __init__(self, write: Callable[[str], Any], *, lines: bool) -> None:
        self._write, self._lines = write, lines
        self._before = "" if lines else "[\n"

    def add(self, records: list[Record]) -> None:
        """Add rows."""
        texts = [json_text(record) for record in records]
        if self._lines:
            self._write("".join(f"{text}\n" for text in texts))
        elif texts:
            self._write(self._before + ",\n".join(texts))
            self._before = ",\n"

    def close(self) -> None:
        """End the list."""
        if not self._lines:
            self._write("[]\n" if self._before == "[\n" else "\n]\n")


class ParquetTable:
    """A Parquet file, with row groups of `ROWS_IN_GROUP`.

    Args:
        path: where to write.
        names: the columns.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        import pyarrow.parquet as pq  # a CSV does without its half a second

        self._schema = arrow_schema(names)
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
        for stale in shards(folder):
            stale.unlink()
        remove_leftovers(folder)
        self._folder, self._schema, self._shard_rows = folder, arrow_schema(names), shard_rows
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


def check_name(out: Place | None) -> None:
    """Raise PredictionError if no kind of table has this ending."""
    if out is not None and out.suffix not in ENDINGS:
        raise PredictionError(
            f"{printable(out)}: is neither .csv, .parquet, .json nor .jsonl, nor a folder for Parquet in shards"
        )


def in_parts(out: Place | None, cluster: str | None) -> bool:
    """Tell whether a table is made in parts, which may be made elsewhere; see `parts`.

    Raises:
        PredictionError: a cluster is to make it, and no table is named.
    """
    if cluster is not None and out is None:
        raise PredictionError("a cluster's rows go into a table: name one with --out")
    return cluster is not None or isinstance(out, Address)


def shards(folder: Path) -> list[Path]:
    """Return the parts of a table that a folder holds."""
    return sorted(one for one in folder.glob("part-*.parquet") if PART.fullmatch(one.name))


@contextmanager
def claimed_table(out: Path, inputs: Iterable[Path], journal: Path | None = None) -> Iterator[None]:
    """Have a table to oneself while the block writes it.

    A folder is ours, too, if no part of a table lies in it.

    Args:
        out: the table.
        inputs: what is read, never to be written over.
        journal: what says that the table is ours if it is there, unless it was changed since; it is written, too.

    Raises:
        PredictionError: the table is an input or not ours, or another run writes it.
    """
    place = out.resolve()
    known = (journal is not None and journal.exists()) or (place.is_dir() and not shards(place))
    names = [PART.fullmatch(one.name) for one in shards(place)]
    if any(name and name["run"] for name in names):
        raise PredictionError(
            f"{printable(out)}: holds a table in parts, of a run with --cluster; name it again, or choose another --out"
        )
    wanted = [place] if journal is None else [place, journal]
    with claimed(wanted, lock=lock_of(place), error=PredictionError, inputs=inputs, known=known, edited=wanted[1:]):
        yield


@contextmanager
def open_table(
    out: Path | None, names: Sequence[str], earlier: Iterable[list[Record]] = (), *, shard_rows: int = SHARD_ROWS
) -> Iterator[Table]:
    """Open the table that `out` names: a .csv, .parquet, .json or .jsonl, or a folder for Parquet in shards.

    What `out` held before is replaced: by a CSV or JSON lines once the rows of before are in it, by others when they
    are whole.

    Args:
        out: where to write; None for CSV on standard output.
        names: the columns.
        earlier: rows of before, some at a time.
        shard_rows: rows of each Parquet file in a folder.

    Raises:
        PredictionError: another ending.
        OSError: a place that cannot be written to.
    """
    check_name(out)
    out = out and out.resolve()  # a link stays one
    with ExitStack() as stack:
        if out is None:
            table: Table = CsvTable(_print, names, seen=sys.stdout.isatty())
        elif out.suffix == ".parquet":
            table = ParquetTable(stack.enter_context(replacing(out)), names)
        elif out.suffix == "":
            table = ShardedTable(out, names, shard_rows)
        elif out.suffix == ".json":
            stream = Appended(out, stack.enter_context(replacing(out)))
            stack.callback(stream.close)
            table = JsonTable(stream.write, lines=False)
        else:
            table, earlier = stack.enter_context(_growing(out, names, earlier)), ()
        for records in earlier:
            table.add(records)
        yield table
        table.close()


@contextmanager
def _growing(out: Path, names: Sequence[str], earlier: Iterable[list[Record]]) -> Iterator[Table]:
    """Open a table of lines, which is in its place as soon as the rows of before are in it."""
    with replacing(out) as temporary:
        stream = Appended(out, temporary)
        try:
            table: Table = (
                CsvTable(stream.write, names) if out.suffix == ".csv" else JsonTable(stream.write, lines=True)
            )
            for records in earlier:
                table.add(records)
        finally:
            stream.close()
    stream.reopen()
    try:
        yield table
    finally:
        stream.close()


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def arrow_schema(names: Sequence[str]) -> "pa.Schema":
    """Return the types of a table's columns."""
    import pyarrow as pa

    text = dict.fromkeys(("path", "label", "error"), pa.string())
    kinds = {**text, "channel": pa.int64(), "embedding": pa.list_(pa.float32())}
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in names])


def _arrow(records: list[Record], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    return pa.Table.from_pylist(records, schema=schema)
