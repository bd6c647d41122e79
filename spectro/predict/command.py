"""The predict verb: classify files, folders and lists into a table that is written as it goes."""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from spectro.errors import PredictionError
from spectro.files import replacing
from spectro.predict.folder import columns, expand, predict_rows
from spectro.predict.predictor import Predictor, default_checkpoint
from spectro.signal import audio


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Classify recordings: one row each, with the probability of every label, or with the reason why there is none.

    Exit code 1 means that some recordings could not be used; their rows say why, and the rest is complete.

    Args:
        inputs: recordings, rendered pictures (.png), folders (with all folders below), or lists: a .txt with a path a
            line, a .csv with a column path.
        checkpoint: a checkpoint folder; null for the shipped one.
        out: table to write, .csv or .parquet; null prints CSV. A .csv grows as recordings are classified.
        batch_size: pictures that the network takes at a time.
        device: cpu, cuda, ...; null takes a GPU where there is one.
        max_duration_s: recordings longer than this are refused, in seconds.
    """

    inputs: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    out: Path | None = None
    batch_size: int = 32
    device: str | None = None
    max_duration_s: float = audio.DEFAULT_MAX_DURATION_S


class Table(Protocol):
    """A table that rows are added to."""

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows; they are on their way to the disk when this returns."""


class CsvTable:
    """A CSV that is there as far as it has come.

    Args:
        stream: where to write.
        names: the columns.
    """

    def __init__(self, stream: TextIO, names: list[str]) -> None:
        self._stream = stream
        self._writer = csv.DictWriter(stream, names, lineterminator="\n")
        self._writer.writeheader()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows."""
        self._writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
        self._stream.flush()


class ParquetTable:
    """A Parquet file, a row group a batch.

    Args:
        path: where to write.
        labels: the checkpoint's labels.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        texts = ("path", "label", "error")
        kinds = [(name, pa.string() if name in texts else pa.float64()) for name in columns(labels)]
        self._schema = pa.schema(kinds)
        self._writer = pq.ParquetWriter(path, self._schema)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows."""
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


@contextmanager
def open_table(out: Path | None, labels: Sequence[str]) -> Iterator[Table]:
    """Open the table that `out` names by its ending: .csv, .parquet, or None for CSV on standard output.

    Raises:
        PredictionError: another ending.
        OSError: a place that cannot be written to.
    """
    if out is None:
        yield CsvTable(sys.stdout, columns(labels))
        return
    if out.suffix not in (".csv", ".parquet"):
        raise PredictionError(f"{out}: is neither .csv nor .parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        with out.open("w", newline="", encoding="utf-8") as stream:
            yield CsvTable(stream, columns(labels))
    else:
        with replacing(out) as temporary:
            table = ParquetTable(temporary, labels)
            yield table
            table.close()


def run(settings: PredictSettings) -> int:
    """Run the verb; returns its exit code."""
    if settings.batch_size < 1:
        raise PredictionError(f"batch_size is {settings.batch_size}; at least 1 is needed")
    paths = list(expand(settings.inputs))
    if not paths:
        raise PredictionError(f"no recording in {', '.join(settings.inputs)}")
    predictor = Predictor(
        settings.checkpoint or default_checkpoint(), device=settings.device, max_duration_s=settings.max_duration_s
    )
    labels = predictor.labels
    rows = predict_rows(predictor, paths, batch_size=settings.batch_size)
    failed = 0
    with (
        open_table(settings.out, labels) as table,
        tqdm(total=len(paths), desc="predicting", unit="clip", file=sys.stderr) as progress,
    ):
        while batch := list(islice(rows, settings.batch_size)):
            table.add([row.record(labels) for row in batch])
            failed += sum(bool(row.error) for row in batch)
            progress.update(len(batch))
            progress.set_postfix(failed=failed)
    _report(settings, len(paths), failed)
    return 0 if not failed else 2 if failed == len(paths) else 1


def _report(settings: PredictSettings, total: int, failed: int) -> None:
    where = f" in {settings.out}" if settings.out else ""
    bad = f"; {failed} could not be used, see the column error" if failed else ""
    print(f"{total - failed} of {total} recordings classified{where}{bad}", file=sys.stderr)


def _text(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
