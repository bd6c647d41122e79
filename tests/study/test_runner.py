import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from spectro.study.runner import command, context
from tests.conftest import World


def _ask(given: dict[str, Any], folder: Path) -> None:
    command("finetune", given, folder / "run.yaml", folder / "run.log", 1)


@pytest.mark.slow  # two servers import everything; that a killed study goes on is in the quick tests
def test_killing_the_parent_process_ends_its_run_and_server(world: World, tmp_path: Path) -> None:
    given = {
        "index": str(world.images),
        "out": str(tmp_path / "run"),
        "backbone": "test_efficientnet",
        "weights": "none",
        "batch_size": 8,
        "train": {"epochs": 100_000},
        "accelerator": "cpu",
    }
    asking = context().Process(target=_ask, args=(given, tmp_path))
    asking.start()
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run").glob("training/last.*")):
        assert asking.is_alive() and time.monotonic() < deadline, (tmp_path / "run.log").read_text()
        time.sleep(0.05)
    started = psutil.Process(asking.pid).children(recursive=True)
    asking.kill()
    asking.join()
    assert len(started) >= 2, "its server and the run"
    _gone, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
