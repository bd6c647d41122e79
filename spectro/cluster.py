"""Work on many machines with Ray Data, as `processes` does on one.

Ray runs as many processes as the cluster has room for, hands them items as they finish, and reassigns the items of a
process or machine that is lost. Ray's usage reports are switched off.
"""

import logging
import os
import pickle
import platform
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from spectro.errors import SpectroError

LOG = logging.getLogger("spectro")
STORED_BYTES = 2**20
"""Least size of an object in the store, as far as items suffice: Ray keeps objects below 100 kB in the run's memory."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray cluster, and the resources that each process takes.

    Args:
        address: `auto` for the cluster that this machine belongs to, `local` for one that is started here and ends with
            the work, or the address of a cluster's head node, HOST:6379, from a machine of that cluster.
        cpus: CPUs for each process; may be a fraction.
        gpus: GPUs for each process; may be a fraction.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not self.cpus > 0 or self.gpus < 0:
            raise SpectroError(
                f"a process takes {self.cpus:g} CPUs and {self.gpus:g} GPUs; CPUs must be more than 0, GPUs 0 or more"
            )
        if self.address.startswith("ray://"):
            raise SpectroError(
                f"{self.address}: start the run on a machine of the cluster: submit it there with `ray job submit`, "
                "with --cluster auto"
            )


def check_installed() -> None:
    """Raise SpectroError if Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise SpectroError(f"a cluster needs Ray: install spectro[ray] ({error})") from error


def on_cluster(work: Callable[[Item], Result], items: Iterable[Item], cluster: Cluster) -> Iterator[Result]:
    """Yield the result of `work` for each item, in order of completion.

    Items wait in the cluster's object store. If a process is lost, its item is processed again from the start.

    Args:
        work: a function that every machine can import, or a `functools.partial` of one.
        items: the items to process.
        cluster: where to process them.

    Raises:
        SpectroError: Ray is not installed; the cluster does not exist, was lost, or has a machine with another version
            of spectro; or `work` raises one.
        OSError: `work` raises one.
    """
    check_installed()
    import ray

    own = not ray.is_initialized()
    if own:
        _connect(cluster)
    try:
        yield from _rounds(work, items, cluster)
    except ray.exceptions.RayError as error:
        raise SpectroError(
            f"the work on the cluster failed ({_last_line(error)}); run the same command again to continue"
        ) from error
    finally:
        if own:
            ray.shutdown()


def _connect(cluster: Cluster) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.address == "local":
        quiet["include_dashboard"] = False
    try:
        ray.init(address=cluster.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.AuthenticationError) as error:
        raise SpectroError(
            f"cannot join a Ray cluster at {cluster.address!r} ({_first_line(error)}); start one with `ray start "
            "--head`, or use local; if there is one that requires a token, copy its ~/.ray/auth_token to this machine "
            "and set RAY_AUTH_MODE=token"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


class Worker:
    """A worker process.

    Args:
        work: the pickled function.
        wanted: the version of spectro that pickled it.
        gpus: whether the process has a share of a GPU; otherwise it sees none.
    """

    def __init__(self, work: bytes, wanted: str, gpus: bool) -> None:
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._wanted, self._pickled = wanted, work
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Return the results of a batch of items; each is named by its object in the store and its place in that.

        An error is returned as a result, because Ray would retry it, and report nothing but its own retries.
        """
        import ray

        places = (ray.cloudpickle.loads(one) for one in batch["item"])
        items = (ray.get(stored)[place] for stored, place in places)
        return {"result": [pickle.dumps(self._made_of(item)) for item in items]}

    def _made_of(self, pickled: bytes) -> Any:
        try:
            if self._wanted != (found := version("spectro")):
                raise SpectroError(
                    f"{platform.node()} has spectro {found}, others {self._wanted}; install the same version everywhere"
                )
            self._work = self._work or pickle.loads(self._pickled)
            return self._work(pickle.loads(pickled))
        except SpectroError as error:
            return Failure(str(error))
        except OSError as error:
            return Failure(error.strerror or str(error), error.errno, os.fsdecode(error.filename or ""))
        except Exception as error:  # noqa: BLE001  a defect: the run ends with what is known of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            return Failure(f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})")


@dataclass(frozen=True)
class Failure:
    """An error in another process.

    Args:
        text: the message.
        number: errno of a system error; None for a SpectroError.
        place: the file concerned.
    """

    text: str
    number: int | None = None
    place: str = ""

    def error(self) -> Exception:
        """Return the original error."""
        if self.number is None and not self.place:
            return SpectroError(self.text)
        return OSError(self.number, self.text, self.place or None)


def _rounds(work: Callable[[Item], Result], items: Iterable[Item], cluster: Cluster) -> Iterator[Result]:
    import ray
    import ray.data

    rows = [
        {"item": ray.cloudpickle.dumps((stored, place))}
        for some in _together(map(pickle.dumps, items))
        for stored in [ray.put(some)]
        for place in range(len(some))
    ]
    if not rows:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    room = sum(_room(node["Resources"], cluster) for node in ray.nodes() if node["Alive"])
    if not room:
        gpus = f" and {cluster.gpus:g} GPUs" if cluster.gpus else ""
        LOG.warning("no machine of the cluster has %g CPUs%s; waiting for one", cluster.cpus, gpus)
    done = data.map_batches(
        Worker,
        fn_constructor_args=(pickle.dumps(work), version("spectro"), cluster.gpus > 0),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=max(1, min(room, len(rows))), max_size=len(rows), max_tasks_in_flight_per_actor=2
        ),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )
    for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for one in block["result"]:
            result = pickle.loads(one.as_py())
            if isinstance(result, Failure):
                raise result.error()
            yield result


def _together(items: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the items in groups of at least `STORED_BYTES`, but for the last."""
    some: list[bytes] = []
    for item in items:
        some.append(item)
        if sum(map(len, some)) >= STORED_BYTES:
            yield some
            some = []
    if some:
        yield some


def _room(resources: dict[str, float], cluster: Cluster) -> int:
    """Return the number of processes that a machine has room for."""
    wanted = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    return min(int(resources.get(kind, 0.0) / each) for kind, each in wanted.items() if each)
