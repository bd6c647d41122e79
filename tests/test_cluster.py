"""Results and errors from a cluster's processes; tests/predict/test_spread.py tests whole runs on a cluster."""

import errno
import os
import pickle
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from spectro.cluster import STORED_BYTES, Cluster, Failure, Worker, _room, _together
from spectro.errors import CheckpointError, SpectroError


def double(item: int) -> int:
    return 2 * item


def refuse(_item: int) -> int:
    raise CheckpointError("net: holds no checkpoint")


def fill_the_disk(_item: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", "table/part-00000.parquet")


def test_a_worker_returns_results_and_preserves_spectros_errors() -> None:
    assert Worker(pickle.dumps(double), version("spectro"), gpus=True)._made_of(pickle.dumps(3)) == 6
    failed = Worker(pickle.dumps(refuse), version("spectro"), gpus=True)._made_of(pickle.dumps(3))
    assert isinstance(failed, Failure)
    assert isinstance(failed.error(), SpectroError) and str(failed.error()) == "net: holds no checkpoint"


def fail(_item: int) -> int:
    raise ValueError("clip x.wav is odd")


def test_an_unexpected_error_is_reported_with_its_text_and_place() -> None:
    failed = Worker(pickle.dumps(fail), version("spectro"), gpus=True)._made_of(pickle.dumps(3))
    assert str(failed.error()).startswith(f"ValueError: clip x.wav is odd ({__file__}, line ")


def test_a_process_without_a_share_of_a_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    Worker(pickle.dumps(double), version("spectro"), gpus=True)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    Worker(pickle.dumps(double), version("spectro"), gpus=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_full_disk_is_reported_as_an_os_error_with_its_file() -> None:
    error = Worker(pickle.dumps(fill_the_disk), version("spectro"), gpus=True)._made_of(pickle.dumps(3)).error()
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, "table/part-00000.parquet")


def test_a_version_mismatch_is_reported_as_an_error() -> None:
    failed = Worker(pickle.dumps(double), "0.0.1", gpus=True)._made_of(b"of another version")
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
def test_the_room_of_a_machine_follows_from_its_cpus_and_gpus(
    resources: dict[str, float], cluster: Cluster, room: int
) -> None:
    assert _room(resources, cluster) == room


def test_a_missing_token_is_reported_with_the_way_out(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = "from spectro.cluster import *; [*on_cluster(abs, [1], Cluster(address='127.0.0.1:1'))]"
    variables = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        variables.pop(name, None)
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("spectro.errors.SpectroError: cannot join a Ray cluster at '127.0.0.1:1'")
    assert "no authentication token was found" in last and "set RAY_AUTH_MODE=token" in last


def test_items_are_stored_together_until_they_are_large_enough() -> None:
    half, small = bytes(STORED_BYTES // 2), b"small"
    assert [*_together([half, half, small, half, half])] == [[half, half], [small, half, half]]
    assert [*_together([small])] == [[small]]
    assert [*_together([])] == []
