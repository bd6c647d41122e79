"""The predict verb: classify files, folders and lists into a table; killed runs resume, folders can be watched."""

import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from spectro.addresses import Address, Place, sign_at
from spectro.audio import recording
from spectro.engines.base import EngineName, Precision
from spectro.engines.pytorch import TorchEngine, on_gpu
from spectro.errors import PredictionError
from spectro.files import Signature, fingerprint, printable
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import identity
from spectro.predict.batches import predict_rows
from spectro.predict.inputs import expand, local
from spectro.predict.network import Network
from spectro.predict.output.journal import Journal, beside, is_journal
from spectro.predict.output.tables import SHARD_ROWS, Record, Table, check_name, claimed_table, in_parts, open_table
from spectro.predict.predictor import Predictor
from spectro.predict.results import Row
from spectro.processes import in_processes, threads
from spectro.schema import check_least

FEW, FEW_FOR_TORCH = 500, 3000
"""Minimum number of recordings for which several processes are faster than one; PyTorch takes longer to start."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Classify recordings: one row each, with the probability of every label or the reason for a failure.

    A run with --out can be killed at any moment: the same command continues where it stopped, and classifies
    changed and failed recordings again. Recordings and tables may be remote, at addresses that fsspec supports, such
    as s3://bucket/calls. With --cluster or a remote table, recordings are classified in parts: a kill loses the parts
    in progress. A table that spectro did not make is never replaced. A recording longer than the picture is
    classified by its middle, or by the part with the most speech; `spectro timeline` follows long recordings. Exit
    code 1 means that some recordings failed; their rows give the reason, and all others are complete.

    Args:
        inputs: recordings, rendered pictures (.png), folders (searched recursively), or lists: a .txt with one path per
            line, or a .csv with a column `path`; each may be an address.
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        out: output table: .csv or .jsonl (which grow row by row), .parquet, .json, or a folder for sharded Parquet.
            null prints CSV and keeps no journal. It may be an address.
        batch_size: pictures per batch.
        device: cpu, cuda, ...; null uses a GPU if one is available.
        engine: inference engine; auto picks the fastest one installed (onnx and openvino are extras).
        precision: float32, or bfloat16 for more speed (torch, openvino); close calls are computed in float32 either
            way.
        workers: processes that render and predict; 0 for one per core if there are enough recordings to make up for
            their start-up time. Each has its own network, on one thread. On a GPU, and with follow, there is one
            process. Not with a cluster.
        max_duration_s: reject recordings longer than this, in seconds.
        min_margin: give the label `unsure` if the two highest probabilities differ by less than this, 0 to 1.
        min_speech: give the label `no speech` if the probability of speech is below this, 0 to 1; 0 turns this off.
        embeddings: add a column embedding with the input of the network's last layer; not for .csv.
        resume: keep the rows of an earlier run of the same command; false classifies everything again.
        follow: keep watching the folders until interrupted. Rows of deleted recordings are kept. A recording that
            changes is classified again: the later row counts, and the earlier one is removed when the run ends or the
            next one begins.
        settle_s: with follow, wait until a recording has been unchanged for this long, in seconds.
        shard_rows: rows per Parquet file if out is a folder; at most 1,000 with a cluster or at an address.
        cluster: distribute the work with Ray: auto for the cluster that this machine belongs to, HOST:6379 for the one
            with this head node, local for one started on this machine. All machines must see the recordings and the
            table under the same paths as this one, and have the same version of spectro. null uses no cluster.
        cluster_cpus: CPUs for each network in a cluster.
        cluster_gpus: GPUs for each network in a cluster, if device is cuda; with 0.25, four share one.
    """

    inputs: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    out: Address | Path | None = None
    batch_size: int = 32
    device: str | None = None
    engine: EngineName = "auto"
    precision: Precision = "float32"
    workers: int = 0
    max_duration_s: float = recording.DEFAULT_MAX_DURATION_S
    min_margin: float = 0.0
    min_speech: float = 0.5
    embeddings: bool = False
    resume: bool = True
    follow: bool = False
    settle_s: float = 2.0
    shard_rows: int = SHARD_ROWS
    cluster: str | None = None
    cluster_cpus: float = 1.0
    cluster_gpus: float = 1.0

    def __post_init__(self) -> None:
        check_least(self, PredictionError, batch_size=1, shard_rows=1, workers=0)
        if not self.settle_s > 0:
            raise PredictionError(f"settle_s is {self.settle_s}; it must be positive")
        check_name(self.out)
        if self.embeddings and (self.out is None or self.out.suffix == ".csv"):
            raise PredictionError("embeddings cannot be written to CSV; name a .parquet, .jsonl or .json with --out")
        if self.cluster is not None and self.workers:
            raise PredictionError("a cluster has its own processes: leave workers out, and see cluster_cpus")
        if in_parts(self.out, self.cluster) and self.follow:
            raise PredictionError("follow needs a table on this machine and no cluster")


def run(settings: PredictSettings) -> int:
    """Run the verb; returns its exit code."""
    if in_parts(settings.out, settings.cluster):
        return _spread(settings)
    paths = list(dict.fromkeys(expand(settings.inputs)))
    if not paths and not settings.follow:
        raise PredictionError(f"no recording in {', '.join(map(printable, settings.inputs))}")
    if settings.out is None:
        return _run(settings, paths)
    assert isinstance(settings.out, Path)
    journal = beside(settings.out)
    if journal.exists() and not is_journal(journal):
        raise PredictionError(f"{printable(journal)}: is not a spectro journal; choose another --out, or move it away")
    with claimed_table(settings.out, local([*settings.inputs, *paths]), journal):
        return _run(settings, paths)


def _spread(settings: PredictSettings) -> int:
    """Classify recordings in parts; returns the exit code."""
    from spectro.predict.spread import PART_ROWS, Spread, cluster_of, spread

    assert settings.out is not None
    network = Network.of(settings)
    return spread(
        Spread(
            what="predicting",
            inputs=settings.inputs,
            network=network,
            answer=partial(_answer, batch_size=settings.batch_size),
            out=settings.out,
            columns=tuple(Row(path="").record(network.labels(), embeddings=settings.embeddings)),
            identity=_depends(settings),
            embeddings=settings.embeddings,
            resume=settings.resume,
            most=min(settings.shard_rows, PART_ROWS),
            workers=partial(_processes, settings, network),
            cluster=cluster_of(settings.cluster, settings.device, settings.cluster_cpus, settings.cluster_gpus),
        ),
        expand(settings.inputs),
    )


def _answer(predictor: Predictor, places: Sequence[Place], batch_size: int) -> Iterator[list[Row]]:
    """Yield the row of each recording."""
    return ([row] for row in predict_rows(predictor, places, batch_size=batch_size))


def _run(settings: PredictSettings, paths: list[Place]) -> int:
    """Classify recordings into an output that this run has claimed; returns the exit code."""
    out, network = settings.out, Network.of(settings)
    assert not isinstance(out, Address)
    names = list(Row(path="").record(network.predictor().labels, embeddings=settings.embeddings))
    with ExitStack() as stack:
        journal = stack.enter_context(_journal(settings, out, paths)) if out else None
        run = stack.enter_context(Run(settings, network, journal, len(paths)))
        todo = [path for path in paths if not journal or str(path) not in journal.done]
        with open_table(out, names, run.earlier(), shard_rows=settings.shard_rows) as table:
            if settings.follow:
                with _until_stopped():
                    for arrived in _arrivals(settings, dict(journal.done) if journal else {}):
                        run.classify(arrived, table)
            else:
                run.classify(todo, table)
        if journal and (journal.superseded or settings.follow):
            # without superseded rows, and with those whose entry in the table was interrupted
            with open_table(out, names, run.journalled(), shard_rows=settings.shard_rows):
                pass
    print(run.summary(), file=sys.stderr)
    return 0 if not run.failed else 2 if run.failed == run.total else 1


class Run:
    """Passes rows from predictors into journal and table, with a progress bar.

    Args:
        settings: the verb's settings.
        network: the network that predicts the rows.
        journal: where rows are written first; None for no journal.
        expected: number of recordings known so far.

    Attributes:
        failed: number of recordings whose row gives an error.
    """

    def __init__(self, settings: PredictSettings, network: Network, journal: Journal | None, expected: int) -> None:
        self._settings, self._network, self._journal = settings, network, journal
        self._predictor = network.predictor()
        self._bar = tqdm(total=expected, desc="predicting", unit="clip", file=sys.stderr)
        self._started, self._heard_s = time.perf_counter(), 0.0
        self._left = expected
        self._bad: dict[str, bool] = {}
        self._kept = self.failed = 0

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def total(self) -> int:
        """Number of recordings that have a row."""
        return len(self._bad)

    def journalled(self) -> Iterator[list[Record]]:
        """Yield the rows of the journal in batches, and count them."""
        for records in self._journal.records() if self._journal else ():
            yield records
            self._count(records)

    def earlier(self) -> Iterator[list[Record]]:
        """Yield an earlier run's rows in batches."""
        yield from self.journalled()
        self._kept = self.total
        self._left -= self._kept
        self._bar.initial = self._bar.n  # so that the rate shown is this run's

    def classify(self, paths: Iterable[Place], table: Table) -> None:
        """Classify recordings; each row is written to the journal before the table."""
        signed: deque[tuple[Place, Signature | None]] = deque()

        def sign_each() -> Iterator[Place]:
            for path in paths:
                signed.append((path, sign_at(path)))
                yield path

        rows = self._rows(sign_each())
        while batch := list(islice(rows, self._settings.batch_size)):
            records = [row.record(self._predictor.labels, embeddings=self._settings.embeddings) for row in batch]
            if self._journal:
                self._journal.add((*signed.popleft(), record) for record in records)
            table.add(records)
            self._heard_s += sum(row.end_s for row in batch if not row.error)
            self._count(records)

    def _rows(self, paths: Iterable[Place]) -> Iterator[Row]:
        """Yield the row of each recording, in order; uses processes if there are many."""
        size, count = self._settings.batch_size, _processes(self._settings, self._network, self._left)
        if count == 1:
            yield from predict_rows(self._predictor, paths, batch_size=size)
            return
        remaining = iter(paths)
        batches = iter(lambda: list(islice(remaining, size)), [])
        work = partial(_rows_of, network=self._network, embeddings=self._settings.embeddings)
        for rows in in_processes(work, batches, count, ordered=True):
            yield from rows

    def summary(self) -> str:
        """Return a one-line summary of all rows."""
        kept = f" ({self._kept} kept from an earlier run)" if self._kept else ""
        where = f" in {printable(self._settings.out)}" if self._settings.out else ""
        bad = f"; {self.failed} could not be used, see the column error" if self.failed else ""
        done = f"{self.total - self.failed} of {self.total} recordings classified{kept}{where}"
        return f"{done} by {self._predictor.engine.name}{bad}"

    def _count(self, records: list[Record]) -> None:
        for record in records:
            bad = bool(record["error"])
            self.failed += bad - self._bad.get(record["path"], False)
            self._bad[record["path"]] = bad
        self._bar.total = max(self._bar.total or 0, self.total)
        speed = self._heard_s / (time.perf_counter() - self._started)
        self._bar.set_postfix(failed=self.failed, speed=f"{speed:.0f}x real time", refresh=False)
        self._bar.update(self.total - self._bar.n)


def _processes(settings: PredictSettings, network: Network, recordings: int) -> int:
    """Return the number of processes to use for a number of recordings."""
    engine = network.predictor().engine
    if settings.follow or on_gpu(engine):
        return 1
    enough = FEW_FOR_TORCH if isinstance(engine, TorchEngine) else FEW
    return settings.workers or (threads() if recordings >= enough else 1)


def _rows_of(paths: list[Place], network: Network, embeddings: bool) -> list[Row]:
    """Return the rows of some recordings; runs in a worker process."""
    rows = predict_rows(network.predictor(), paths, batch_size=len(paths))
    return [row if embeddings else replace(row, embedding=None) for row in rows]


def _depends(settings: PredictSettings) -> str:
    """Return a fingerprint of the checkpoint and the settings that rows depend on."""
    own = ("max_duration_s", "min_margin", "min_speech", "embeddings", "precision")
    columns = list(Row(path="").record(()))  # later versions may add some
    folder = settings.checkpoint or default_checkpoint()
    return fingerprint([identity(folder), columns, *(getattr(settings, name) for name in own)])


def _journal(settings: PredictSettings, out: Path, paths: list[Place]) -> Journal:
    """Open the journal of a table."""
    wanted = None if settings.follow else paths
    journal = Journal(beside(out), _depends(settings), wanted, fresh=not settings.resume)
    if journal.dropped:
        print(
            f"{printable(out)}: {journal.dropped} rows of another checkpoint, other settings or an earlier "
            "version will be recomputed",
            file=sys.stderr,
        )
    return journal


def _arrivals(settings: PredictSettings, taken: dict[str, Signature | None]) -> Iterator[list[Place]]:
    """Yield recordings that are new or have changed, in batches, for ever; each once it has settled.

    Args:
        settings: the verb's settings.
        taken: the signatures of recordings that have a row; updated in place.
    """
    waiting: dict[Place, tuple[Signature | None, float]] = {}
    while True:
        now = time.monotonic()
        arrived = []
        for path in dict.fromkeys(expand(settings.inputs)):
            signature, name = sign_at(path), str(path)
            if name in taken and signature in (None, taken[name]):  # an unreadable file keeps its row
                waiting.pop(path, None)
            elif path not in waiting or waiting[path][0] != signature:
                waiting[path] = (signature, now)
            elif now - waiting[path][1] >= settings.settle_s and _is_still(signature, settings.settle_s):
                arrived.append(path)
                taken[name] = signature
                del waiting[path]
        if arrived:
            yield arrived
        time.sleep(min(1.0, settings.settle_s / 2))


def _is_still(signature: Signature | None, settle_s: float) -> bool:
    """Return whether a file's own times are at least as old; times in the future come from another clock."""
    if signature is None:
        return True
    _size, modified, changed, _number = signature
    if not changed:
        return True  # at an address, a file exists in full or not at all
    return all(not 0 <= time.time() - one / 1e9 < settle_s for one in (modified, changed))


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Run the block until an interrupt or SIGTERM; then continue after it."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
