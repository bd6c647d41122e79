"""Work on many machines, by Ray Data: what `processes` is on one.

Ray keeps as many processes at work as the cluster has room for, hands them items as they come to an end, and gives the
items of a process or a machine that is lost to another. Nothing is told to anybody: Ray's reports are switched off.
"""

import logging
import pickle
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from spectro.errors import SpectroError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray cluster, and what each process of the work takes of it.

    Args:
        address: `auto` for the one that this machine belongs to, `local` for one that is started here and ends with the
            work, or its address: HOST:6379, or ray://HOST:10001 from outside.
        cpus: processors of each process, a share of one or several.
        gpus: GPUs of each process, a share of one or several.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0


def check_installed() -> None:
    """Raise SpectroError if Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise SpectroError(f"a cluster needs Ray: install spectro[ray] ({error})") from error


def on_cluster(work: Callable[[Item], Result], items: Iterable[Item], cluster: Cluster) -> Iterator[Result]:
    """Yield what `work` makes of each item, in the order in which it comes.

    Items wait in the cluster's own store. An item whose process is lost is worked on again, from its begin.

    Args:
        work: a function that can be imported on every machine, or a `functools.partial` of one.
        items: the work.
        cluster: where it is done.

    Raises:
        SpectroError: Ray is not installed, or there is no such cluster.
    """
    check_installed()
    import ray

    own = not ray.is_initialized()
    if own:
        _connect(cluster)
    try:
        yield from _rounds(work, items, cluster)
    finally:
        if own:
            ray.shutdown()


def _connect(cluster: Cluster) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if cluster.address == "local":
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(address=cluster.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SpectroError(
            f"there is no Ray cluster at {cluster.address!r} ({text}); start one by `ray start --head`, or name local"
        ) from error


class Worker:
    """One process of the work.

    Args:
        work: pickled.
        wanted: the version of spectro by which it was pickled.

    Raises:
        SpectroError: this machine has another version.
    """

    def __init__(self, work: bytes, wanted: str) -> None:
        if wanted != (found := version("spectro")):
            raise SpectroError(f"{platform.node()} has spectro {found}, others {wanted}; install the same everywhere")
        self._work: Callable[[Any], Any] = pickle.loads(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Return what is made of items; each is a reference to what was put into the cluster's store."""
        import ray

        items = (pickle.loads(ray.get(ray.cloudpickle.loads(one))) for one in batch["item"])
        return {"result": [pickle.dumps(self._work(item)) for item in items]}


def _rounds(work: Callable[[Item], Result], items: Iterable[Item], cluster: Cluster) -> Iterator[Result]:
    import ray
    import ray.data

    references = [ray.put(pickle.dumps(item)) for item in items]
    if not references:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"item": ray.cloudpickle.dumps(one)} for one in references]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    there = ray.cluster_resources()
    room = [there.get(kind, 0.0) / each for kind, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus)) if each]
    count = max(1, min(len(rows), *(int(one) for one in room)) if room else 1)
    done = data.map_batches(
        Worker,
        fn_constructor_args=(pickle.dumps(work), version("spectro")),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=count, max_size=len(rows), max_tasks_in_flight_per_actor=2),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )
    for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for one in block["result"]:
            yield pickle.loads(one.as_py())
