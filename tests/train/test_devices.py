"""Training on several devices, here processes on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from spectro.errors import TrainingError
from spectro.model.backbones import SpectrogramNet
from spectro.model.batch_norms import calibrate
from spectro.train.data import PictureDataModule
from spectro.train.module import Classifier, TrainingSettings
from tests.conftest import REPOSITORY, SMALL, World

# A network without batch norms, whose statistics would be those of each device's share of a batch.
PLAIN = {"backbone": "test_convnext", "weights": "none", "precision": "32-true", "accelerator": "cpu", "workers": "0"}
SAME = {"dropout": "0", "train.mixup": "0", "train.epochs": "3", "batch_size": "8"}


def start(world: World, out: Path, environment: dict[str, str] | None = None, **more: str) -> subprocess.Popen[str]:
    options = {"index": str(world.images), "out": str(out), **PLAIN, **SAME, **more}
    command = [sys.executable, "-m", "spectro", "finetune", *(f"--{name}={value}" for name, value in options.items())]
    told = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_success(*running: subprocess.Popen[str]) -> None:
    for one in running:
        told, _ = one.communicate(timeout=200)
        assert one.returncode == 0, told


def largest_difference(one: Path, other: Path) -> float:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def metrics_of(run: Path) -> object:
    """The figures of validation and test speakers."""
    figures = json.loads((run / "spectro.json").read_text())["metrics"]
    assert {"valid", "test"} <= set(figures)
    return figures


@pytest.mark.slow
def test_two_devices_match_a_single_device_also_after_a_kill_and_across_nodes(world: World, tmp_path: Path) -> None:
    one, two, killed, nodes = (tmp_path / name for name in ("one", "two", "killed", "nodes"))
    wait_for_success(start(world, one, devices="1"))
    wait_for_success(start(world, two, devices="2", strategy="ddp"))
    assert largest_difference(one, two) < 1e-5
    assert metrics_of(one) == metrics_of(two)

    begun = start(world, killed, devices="2", strategy="ddp")
    while not (killed / "training" / "last.ckpt").exists() and begun.poll() is None:
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.communicate()
    wait_for_success(start(world, killed, devices="2", strategy="ddp"))
    assert largest_difference(two, killed) < 1e-6

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    wait_for_success(
        *(
            start(world, nodes, meeting | {"NODE_RANK": str(rank)}, devices="1", nodes="2", strategy="ddp")
            for rank in range(2)
        )
    )
    assert largest_difference(two, nodes) < 1e-6


def test_a_batch_size_not_divisible_by_the_devices_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PictureDataModule(world.images, batch_size=8)
    monkeypatch.setattr("spectro.train.data._world_size", lambda: 3)
    with pytest.raises(TrainingError, match="batch_size is 8; 3 devices need a multiple of their number"):
        data.train_dataloader()


def test_devices_split_batches_and_validation_clips(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PictureDataModule(world.images, batch_size=8)
    alone, batches = len(data.rows["valid"]), data.batches_per_epoch
    shares = []
    monkeypatch.setattr("spectro.train.data._world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("spectro.train.data._rank", lambda rank=rank: rank)
        assert data.train_dataloader().batch_size == 4 and data.batches_per_epoch == batches
        shares.append(sum(len(targets) for _pictures, targets, _groups in data.val_dataloader()))
        assert sum(len(targets) for _pictures, targets, _groups in data.whole("valid")) == alone
    assert sum(shares) == alone


def test_devices_that_share_the_batches_estimate_the_statistics_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 5, 5, generator=generator) * (1 + place) for place in range(5)]
    nets = [
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.BatchNorm2d(4))
        for _device in range(4)
    ]
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
    alone, *shared = nets
    calibrate(alone, batches)
    for device in range(3):  # the last to come knows what the others have found
        found: list[torch.Tensor] = []

        def add(own: torch.Tensor, found: list[torch.Tensor] = found) -> torch.Tensor:
            found.append(own)
            return torch.stack(found).sum(dim=0)

        for one in [*({0, 1, 2} - {device}), device]:
            calibrate(shared[one], batches, device=one, devices=3, add=add)
        for name, value in alone.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(shared[device].state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_validation_sums_the_statistics_over_all_devices() -> None:
    net = SpectrogramNet("test_efficientnet", 3)
    model, sums = Classifier(net, TrainingSettings(), seed=0), list[torch.Tensor]()
    batch = (torch.zeros(2, 1, *SMALL.shape), torch.zeros(2), torch.zeros(2))

    def reduce(own: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        sums.append(own)
        return own

    model._trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=1,
        world_size=2,
        strategy=SimpleNamespace(reduce=reduce),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        datamodule=SimpleNamespace(calibration_dataloader=lambda _pictures: [batch] * 5),
    )
    model.on_validation_epoch_start()
    assert [float(own[-1]) for own in sums] == [2], "this device takes the second and the fourth batch"
