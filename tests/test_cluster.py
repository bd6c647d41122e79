"""Results and errors from a cluster's processes; tests/predict/test_spread.py tests whole runs on a cluster."""

import errno
import pickle
from importlib.metadata import version

import pytest

from spectro.cluster import Cluster, Failure, Worker, _room
from spectro.errors import CheckpointError, SpectroError


def double(item: int) -> int:
    return 2 * item


def refuse(_item: int) -> int:
    raise CheckpointError("net: holds no checkpoint")


def fill_the_disk(_item: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", "table/part-00000.parquet")


def test_results_come_back_and_errors_of_ours_as_they_were() -> None:
    assert Worker(pickle.dumps(double), version("spectro"))._made_of(3) == 6
    failed = Worker(pickle.dumps(refuse), version("spectro"))._made_of(3)
    assert isinstance(failed, Failure)
    assert isinstance(failed.error(), SpectroError) and str(failed.error()) == "net: holds no checkpoint"


def test_a_full_disk_is_told_as_one() -> None:
    error = Worker(pickle.dumps(fill_the_disk), version("spectro"))._made_of(3).error()
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, "table/part-00000.parquet")


def test_another_version_ends_the_run_with_a_sentence() -> None:
    failed = Worker(pickle.dumps(double), "0.0.1")._made_of(3)
    assert "others 0.0.1; install the same version everywhere" in str(failed.error())


@pytest.mark.parametrize(
    ("resources", "cluster", "room"),
    [
        ({"CPU": 8.0}, Cluster(address="auto", cpus=2), 4),
        ({"CPU": 8.0}, Cluster(address="auto", cpus=16), 0),
        ({"CPU": 8.0, "GPU": 1.0}, Cluster(address="auto", gpus=0.25), 4),
        ({"CPU": 8.0}, Cluster(address="auto", gpus=0.25), 0),
    ],
)
def test_a_machine_has_room_for_what_it_has(resources: dict[str, float], cluster: Cluster, room: int) -> None:
    assert _room(resources, cluster) == room
