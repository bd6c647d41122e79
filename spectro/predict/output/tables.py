"""Tables that rows are added to as they are computed: CSV, Parquet (one file, or shards in a folder), JSON.

CSV and JSON lines files can be read as they grow; the others appear when they are complete.

Paths read back unchanged, whatever their characters (only bytes that are not UTF-8 become \\xNN). A CSV on a terminal
is the exception: it shows characters that a terminal would obey as escapes. Other text goes through `files.printable`.
No cell of a CSV is a formula to a spreadsheet (see `outputs`).
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
"""File names of a table in parts: a number and, if several processes write, the run."""


class Table(Protocol):
    """A table that rows are added to."""

    def add(self, records: list[Record]) -> None:
        """Add rows."""

    def close(self) -> None:
        """Write what is left; not called if the run failed."""


class CsvTable:
    """CSV; a row is on its way to disk when `add` returns.

    Args:
        write: writes text.
        names: the columns.
        seen: whether the text goes to a terminal.
    """

    def __init__(self, write: Callable[[str], Any], names: Sequence[str], *, seen: bool = False) -> None:
        self._write, self._names, self._seen = write, names, seen
        write(rows_text([names]))

    def add(self, records: list[Record]) -> None:
        """Add rows."""
        self._write(rows_text([self._text(name, record[name]) for name in self._names] for record in records))

    def close(self) -> None:
        """Do nothing: everything is written."""

    def _text(self, name: str, value: Any) -> Any:
        """Return a number with six significant digits; seconds from 1000 on keep their milliseconds."""
        if isinstance(value, float):
            return f"{value:.6g}" if abs(value) < 1000 else f"{value:.3f}".rstrip("0").rstrip(".")
        if isinstance(value, str):
            return cell(name, value if name == "path" and not self._seen else printable(value, MESSAGE))
        return "" if value is None else value


class JsonTable:
    """A JSON list, or one JSON object per line.

    Args:
        write: writes text.
        lines: write one object per line, without the enclosing list.
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
        path: file to write.
        names: the columns.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        import pyarrow.parquet as pq  # takes half a second that a CSV does not need

        self._schema = arrow_schema(names)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._waiting: list[Record] = []

    def add(self, records: list[Record]) -> None:
        """Add rows; a row group is written when it is full."""
        self._waiting += records
        if len(self._waiting) >= ROWS_IN_GROUP:
            self._write()

    def close(self) -> None:
        """Write the last row group, and finish the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(_arrow(self._waiting, self._schema))
        self._waiting = []


class ShardedTable:
    """A folder of Parquet files, `part-00000.parquet` and on, each complete once it exists.

    Args:
        folder: folder to write to; parts of an earlier run in it are removed.
        names: the columns.
        shard_rows: rows per part.
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
    """Raise PredictionError if no kind of table has this suffix."""
    if out is not None and out.suffix not in ENDINGS:
        raise PredictionError(
            f"{printable(out)}: is neither .csv, .parquet, .json nor .jsonl, nor a folder for Parquet shards"
        )


def in_parts(out: Place | None, cluster: str | None) -> bool:
    """Return whether a table is written in parts, which other machines may write; see `parts`.

    Raises:
        PredictionError: there is a cluster, but no table is named.
    """
    if cluster is not None and out is None:
        raise PredictionError("rows from a cluster go into a table: name one with --out")
    return cluster is not None or isinstance(out, Address)


def shards(folder: Path) -> list[Path]:
    """Return the parts of a table in a folder."""
    return sorted(one for one in folder.glob("part-*.parquet") if PART.fullmatch(one.name))


@contextmanager
def claimed_table(out: Path, inputs: Iterable[Path], journal: Path | None = None) -> Iterator[None]:
    """Hold a table exclusively while the block writes it.

    A folder without parts of a table is ours, too.

    Args:
        out: the table.
        inputs: inputs of the run, which must not be overwritten.
        journal: the table's journal, which is written, too. If it exists, the table is ours unless changed since.

    Raises:
        PredictionError: the table is an input or not ours, or another run is writing it.
    """
    place = out.resolve()
    known = (journal is not None and journal.exists()) or (place.is_dir() and not shards(place))
    names = [PART.fullmatch(one.name) for one in shards(place)]
    if any(name and name["run"] for name in names):
        raise PredictionError(
            f"{printable(out)}: holds a table in parts, from a run with --cluster; set it, or choose another --out"
        )
    wanted = [place] if journal is None else [place, journal]
    with claimed(wanted, lock=lock_of(place), error=PredictionError, inputs=inputs, known=known, edited=wanted[1:]):
        yield


@contextmanager
def open_table(
    out: Path | None, names: Sequence[str], earlier: Iterable[list[Record]] = (), *, shard_rows: int = SHARD_ROWS
) -> Iterator[Table]:
    """Open the table at `out`: a .csv, .parquet, .json or .jsonl file, or a folder for Parquet shards.

    A new table replaces the one at `out`: CSV and JSON lines as soon as they hold the earlier rows, others when they
    are complete.

    Args:
        out: file or folder to write; None for CSV on standard output.
        names: the columns.
        earlier: earlier rows, in batches.
        shard_rows: rows of each Parquet file in a folder.

    Raises:
        PredictionError: `out` has another suffix.
        OSError: `out` cannot be written to.
    """
    check_name(out)
    out = out and out.resolve()  # a link stays a link
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
    """Open a table of lines, which is moved into place as soon as it holds the earlier rows."""
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
    """Return the Arrow schema for a table's columns."""
    import pyarrow as pa

    text = dict.fromkeys(("path", "label", "error"), pa.string())
    kinds = {**text, "channel": pa.int64(), "embedding": pa.list_(pa.float32())}
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in names])


def _arrow(records: list[Record], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    return pa.Table.from_pylist(records, schema=schema)
