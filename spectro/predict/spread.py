"""A run over recordings in parts, which processes on this machine or on many work on; its tables are `output.parts`.

What runs here and what runs elsewhere is the same function: it answers for some recordings, and writes a file of rows.
"""

import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from tqdm import tqdm

from spectro.addresses import Address, Place, place
from spectro.cluster import Cluster, check_installed, on_cluster
from spectro.errors import PredictionError
from spectro.files import printable
from spectro.outputs import claimed, lock_of
from spectro.predict.inputs import local
from spectro.predict.network import Network
from spectro.predict.output.parts import Answered, Listing, Parts, parts_in, write_part
from spectro.predict.output.tables import open_table
from spectro.predict.predictor import Predictor
from spectro.predict.results import Row
from spectro.processes import in_processes

PART_ROWS = 1000
"""Recordings that are handed out at a time at most, and what a kill can cost."""
FEWEST, PARTS = 50, 256
"""Recordings that are handed out at a time at least; and jobs that there are, as far as they are no smaller."""
LATE_S, TRIES = 2.0, 5
"""How long a drive of several machines may take to show all files, and how often it is looked at."""

Answer: TypeAlias = Callable[[Predictor, Sequence[Place]], Iterator[Sequence[Row]]]
"""What makes all rows of each of some recordings, in their order."""


def cluster_of(address: str | None, device: str | None, cpus: float, gpus: float) -> Cluster | None:
    """Return the cluster that settings name; processes take GPUs of it if the device is one."""
    if address is None:
        return None
    check_installed()
    return Cluster(address=address, cpus=cpus, gpus=gpus if (device or "").startswith("cuda") else 0.0)


@dataclass(frozen=True)
class Job:
    """Recordings that are worked on together.

    Args:
        number: of the file that their rows are written to.
        recordings: paths and keys.
    """

    number: int
    recordings: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Done:
    """What became of a job.

    Args:
        recordings: how many there were.
        failed: how many of them could not be used, or not to their end.
        heard_s: how long the others are together, in seconds.
        engine: what computed the network.
    """

    recordings: int
    failed: int
    heard_s: float
    engine: str


@dataclass(frozen=True)
class Recipe:
    """How jobs are done.

    Args:
        network: what the predictor is made of.
        answer: makes the rows; a function that can be imported, or a `functools.partial` of one.
        folder: where files of rows are written.
        run: tells this run's files from those of another.
        columns: of the table.
        identity: what rows depend on.
        embeddings: whether rows have embeddings.
    """

    network: Network
    answer: Answer
    folder: Place
    run: str
    columns: tuple[str, ...]
    identity: str
    embeddings: bool


def work(job: Job, recipe: Recipe) -> Done:
    """Answer for some recordings, and write their rows; doing it again writes the same file again."""
    predictor = recipe.network.predictor()
    places = [place(path) for path, _key in job.recordings]
    answered, heard_s, failed = [], 0.0, 0
    for (_path, key), rows in zip(job.recordings, recipe.answer(predictor, places), strict=True):
        answered.append(Answered(key, [row.record(predictor.labels, embeddings=recipe.embeddings) for row in rows]))
        failed += any(row.error for row in rows)
        heard_s += max((row.end_s for row in rows if not row.error), default=0.0)
    write_part(recipe.folder, f"part-{job.number:05}-{recipe.run}.parquet", answered, recipe.columns, recipe.identity)
    return Done(len(answered), failed, heard_s, predictor.engine.name)


def one_process(_recordings: int) -> int:
    """Work in this process."""
    return 1


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A run in parts.

    Args:
        what: what the progress bar says.
        inputs: what is named.
        network: what predictors are made of.
        answer: makes the rows; see `Recipe`.
        out: the table: a folder for its parts, or a file that is made of them in the end; a path, or an address.
        columns: of the table.
        identity: what rows depend on.
        embeddings: whether rows have embeddings.
        resume: keep what an earlier run has done.
        fewest: recordings of a part at least, as far as there are as many; 0 for `FEWEST`.
        most: recordings of a part at most.
        cluster: where it is done; None for this machine.
        workers: given the number of recordings, how many processes work on this machine.
    """

    what: str
    inputs: Sequence[str]
    network: Network
    answer: Answer
    out: Place
    columns: tuple[str, ...]
    identity: str
    embeddings: bool = False
    resume: bool = True
    fewest: int = 0
    most: int = PART_ROWS
    cluster: Cluster | None = None
    workers: Callable[[int], int] = one_process


def spread(run: Spread, places: Iterable[Place]) -> int:
    """Answer for recordings; returns the exit code.

    Args:
        run: how.
        places: the recordings; they are listed first, onto the disk.

    Raises:
        PredictionError: there is no recording, or the output is not ours to write.
        SpectroError: there is no such cluster.
    """
    folder = run.out if run.out.suffix == "" else run.out.parent / f".{run.out.name}.parts"
    with ExitStack() as stack:
        if isinstance(run.out, Path) and isinstance(folder, Path):
            out, folder = run.out.resolve(), folder.resolve()
            known = folder.is_dir() and (folder != out or not parts_in(folder))
            wanted = dict.fromkeys([out, folder])
            stack.enter_context(
                claimed(wanted, lock=lock_of(out), error=PredictionError, inputs=local(run.inputs), known=known)
            )
        _check_address(run, folder)
        listing = stack.enter_context(Listing(tqdm(places, desc="listing", unit="clip", file=sys.stderr, leave=False)))
        count = len(listing.keys)
        if not count:
            raise PredictionError("there is no recording in what is named")
        parts = Parts(folder, run.identity, fresh=not run.resume)
        if parts.dropped:
            print(
                f"{printable(run.out)}: {parts.dropped} rows of another checkpoint, other settings or an earlier "
                "version are made again",
                file=sys.stderr,
            )
        done = parts.keep(listing.keys, failed=False)
        kept = int(done.sum())
        recipe = Recipe(
            run.network if run.cluster is None else run.network.shipped(),
            run.answer,
            folder,
            secrets.token_hex(4),
            run.columns,
            run.identity,
            run.embeddings,
        )
        size = max(1, min(run.most, max(run.fewest or FEWEST, (count - kept) // PARTS)))
        jobs = _jobs(listing.without(done), size, parts.next_number())
        engines: set[str] = set()
        with tqdm(total=count, initial=kept, desc=run.what, unit="clip", file=sys.stderr) as bar:
            failed, heard_s = 0, 0.0
            for one in _rounds(partial(work, recipe=recipe), jobs, run, count - kept):
                engines.add(one.engine)
                failed += one.failed
                heard_s += one.heard_s
                seconds = bar.format_dict["elapsed"]
                bar.set_postfix(failed=failed, speed=f"{heard_s / max(seconds, 1e-9):.0f}x real time", refresh=False)
                bar.update(one.recordings)
        _settle(parts, listing, run)
        if run.out.suffix:
            _merge(parts, run)
    failed, unusable = parts.failed()
    note = f" ({kept} kept from an earlier run)" if kept else ""
    by = f" by {', '.join(sorted(engines))}" if engines else ""
    bad = f"; {failed} could not be used, see the column error" if failed else ""
    print(f"{count - failed} of {count} recordings{note} in {printable(run.out)}{by}{bad}", file=sys.stderr)
    return 0 if not failed else 2 if unusable == count else 1


def _jobs(recordings: Iterator[tuple[str, int]], size: int, first: int) -> Iterator[Job]:
    number = first
    while some := tuple(islice(recordings, size)):
        yield Job(number, some)
        number += 1


def _rounds(function: Callable[[Job], Done], jobs: Iterator[Job], run: Spread, left: int) -> Iterator[Done]:
    if run.cluster is not None:
        return on_cluster(function, jobs, run.cluster)
    return in_processes(function, jobs, run.workers(left))


def _settle(parts: Parts, listing: Listing, run: Spread) -> None:
    """See that each recording has its rows, once: a process that was thought lost may have written a file, too.

    Raises:
        PredictionError: some have none that can be seen from here.
    """
    for _try in range(TRIES):
        missing = int((~parts.keep(listing.keys, failed=True)).sum())
        if not missing:
            return
        time.sleep(LATE_S)
    raise PredictionError(
        f"{printable(run.out)}: the rows of {missing} recordings are not there, though they were written; name an "
        "--out that all machines of the cluster share"
    )


def _check_address(run: Spread, folder: Place) -> None:
    """Refuse to write over an input at an address, or over what is not ours.

    Raises:
        PredictionError: it is one.
    """
    if not isinstance(run.out, Address) or not run.out.suffix:
        return
    if str(run.out) in run.inputs:
        raise PredictionError(f"{printable(run.out)}: is an input, and would be overwritten; choose another --out")
    if run.out.kind() is not None and not parts_in(folder):
        raise PredictionError(
            f"{printable(run.out)}: is there already, and spectro did not make it; choose another --out, or move it "
            "away"
        )


def _merge(parts: Parts, run: Spread) -> None:
    """Make the table that was asked for of its parts."""
    with ExitStack() as stack:
        if isinstance(run.out, Address):
            out = Path(stack.enter_context(TemporaryDirectory())) / run.out.name
        else:
            out = run.out
        with open_table(out, run.columns) as table:
            for records in parts.records():
                table.add(records)
        if isinstance(run.out, Address):
            run.out.upload(out)
