"""A run over recordings in parts, shared by processes on one machine or many; its tables are `output.parts`.

The same function runs here and elsewhere: it computes the rows of some recordings and writes them to a file.
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
"""Most recordings per job; a kill can cost as many."""
FEWEST, PARTS = 50, 256
"""Fewest recordings per job; and the number of jobs to aim for, as long as none gets smaller than that."""
LATE_S, TRIES = 2.0, 5
"""Seconds to wait for a drive shared by several machines to show all files, and how often to check."""

Answer: TypeAlias = Callable[[Predictor, Sequence[Place]], Iterator[Sequence[Row]]]
"""Yields all rows of each recording, in the order given."""


def cluster_of(address: str | None, device: str | None, cpus: float, gpus: float) -> Cluster | None:
    """Return the cluster at an address, or None without one; its processes take GPUs only if the device is one."""
    if address is None:
        return None
    check_installed()
    if (device or "").startswith("cuda:"):
        raise PredictionError(
            f"device is {device}; with a cluster, name cuda: each process is given a GPU of its machine"
        )
    return Cluster(address=address, cpus=cpus, gpus=gpus if (device or "").startswith("cuda") else 0.0)


@dataclass(frozen=True)
class Job:
    """Recordings that are processed together.

    Args:
        number: number of the file that their rows are written to.
        recordings: path and key of each.
    """

    number: int
    recordings: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Done:
    """Outcome of a job.

    Args:
        recordings: number of recordings.
        failed: number of recordings that could not be used, or not to their end.
        heard_s: total duration of what could be used, in seconds.
        engine: name of the engine that computed the network.
    """

    recordings: int
    failed: int
    heard_s: float
    engine: str


@dataclass(frozen=True)
class Recipe:
    """What a process needs to do jobs.

    Args:
        network: builds the predictor.
        answer: computes the rows; an importable function, or a `functools.partial` of one.
        folder: where files of rows are written.
        run: distinguishes this run's files from those of other runs.
        columns: columns of the table.
        identity: fingerprint of the checkpoint and settings that rows depend on.
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
    """Compute and write the rows of a job; doing the job again writes the same file again."""
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
        what: label of the progress bar.
        inputs: the inputs, as the user named them.
        network: builds the predictors.
        answer: computes the rows; see `Recipe`.
        out: the table: a folder for its parts, or a file merged from them at the end; a path, or an address.
        columns: columns of the table.
        identity: fingerprint of the checkpoint and settings that rows depend on.
        embeddings: whether rows have embeddings.
        resume: keep the rows of an earlier run.
        fewest: fewest recordings per part, if there are as many; 0 for `FEWEST`.
        most: most recordings per part.
        cluster: cluster to run on; None for this machine.
        workers: returns the number of processes on this machine, given the number of recordings.
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
    """Compute the rows of all recordings, and return the exit code.

    Args:
        run: the run.
        places: the recordings; a list of them is first written to disk.

    Raises:
        PredictionError: there is no recording, or the output is not ours to overwrite.
        SpectroError: the cluster does not exist.
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
            raise PredictionError("there is no recording in the inputs")
        parts = Parts(folder, run.identity, fresh=not run.resume)
        if parts.dropped:
            print(
                f"{printable(run.out)}: {parts.dropped} rows from another checkpoint, other settings or an earlier "
                "version are computed again",
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
    by = f", computed with {', '.join(sorted(engines))}" if engines else ""
    bad = f"; {failed} could not be used, see the error column" if failed else ""
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
    """Make sure that each recording has its rows once: a process presumed lost may have written them, too.

    Raises:
        PredictionError: some recordings have no rows that this machine can see.
    """
    for _try in range(TRIES):
        missing = int((~parts.keep(listing.keys, failed=True)).sum())
        if not missing:
            return
        time.sleep(LATE_S)
    raise PredictionError(
        f"{printable(run.out)}: the rows of {missing} recordings are missing, though they were written; name an "
        "--out that all machines of the cluster share"
    )


def _check_address(run: Spread, folder: Place) -> None:
    """Refuse to overwrite an input at an address, or a table there that is not ours.

    Raises:
        PredictionError: `run.out` is one of these.
    """
    if not isinstance(run.out, Address) or not run.out.suffix:
        return
    if str(run.out) in run.inputs:
        raise PredictionError(f"{printable(run.out)}: is an input, and would be overwritten; choose another --out")
    if run.out.kind() is not None and not parts_in(folder):
        raise PredictionError(
            f"{printable(run.out)}: already exists, without the parts that spectro keeps in {printable(folder)} beside "
            "a table of its own; choose another --out, or move it away"
        )


def _merge(parts: Parts, run: Spread) -> None:
    """Merge the parts into the requested table."""
    with ExitStack() as stack:
        if isinstance(run.out, Address):
            out = Path(stack.enter_context(TemporaryDirectory())) / run.out.name
        else:
            out = run.out
        with open_table(out, run.columns, parts.records()):
            pass  # in place once it is complete
        if isinstance(run.out, Address):
            run.out.upload(out)
