"""How much time does training add to the network's own arithmetic, and how much do frozen first layers save?

python benchmarks/training.py RENDERING                # Lightning, PNGs, masking and mixup, against a bare PyTorch loop
python benchmarks/training.py RENDERING --stages       # the same, part by part
python benchmarks/training.py RENDERING --prefix       # frozen layers computed once per picture, or every time

RENDERING is a folder that `spectro render` wrote. The bare loop has the same network, precision, batch, loss and
optimiser, and its pictures as tensors in memory. It takes turns with the epochs of `spectro finetune`. So does another
loop, which computes all layers in bfloat16; training keeps the layers that are slow in bfloat16 in float32.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch

from spectro.model.backbones import SpectrogramNet
from spectro.train import finetune as finetuning
from spectro.train.curves import Curves
from spectro.train.data import PictureDataModule
from spectro.train.frozen_features import FrozenPrefix
from spectro.train.module import Classifier, TrainingSettings
from spectro.train.precision import spare_strided_depthwise
from spectro.train.settings import FinetuneSettings
from spectro.train.trainer import make_trainer


class Bare:
    """A training loop over tensors in memory.

    Args:
        settings: of the run that it is compared with.
        data: of the same run.
        steps: batches per epoch.
        told: whether layers that are slow in bfloat16 stay in float32, as in training.
    """

    def __init__(self, settings: FinetuneSettings, data: PictureDataModule, steps: int, told: bool = True) -> None:
        self._net = SpectrogramNet(settings.backbone, len(data.labels)).to(memory_format=torch.channels_last)
        loader = iter(data.calibration_dataloader())
        self._batches = [next(loader) for _ in range(steps)]
        weights = [one for one in self._net.parameters() if one.ndim > 1]
        others = [one for one in self._net.parameters() if one.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": settings.train.weight_decay},
            {"params": others, "weight_decay": 0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=settings.train.learning_rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, settings.train.learning_rate, 100_000)
        if told and settings.accelerator == "cpu":
            spare_strided_depthwise(self._net)
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=settings.train.label_smoothing)

    def epoch(self, autocast: Any, device: torch.device) -> float:
        """Train for an epoch; return the seconds."""
        self._net.to(device).train()
        batches = [(pictures.to(device), targets.to(device)) for pictures, targets, _groups in self._batches]
        started = time.perf_counter()
        for pictures, targets in batches:
            with autocast():
                loss = self._loss(self._net(pictures), targets)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
        _finish(device)
        return time.perf_counter() - started


class InTurns(pl.Callback):
    """Times the epochs of a training run, and runs an epoch of each bare loop after each.

    Args:
        bare: the bare loops.
    """

    def __init__(self, *bare: Bare) -> None:
        self._bare, self._started = bare, 0.0
        self.ours: list[float] = []
        self.theirs: list[list[float]] = [[] for _ in bare]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock, and run the bare loops."""
        _finish(pl_module.device)
        self.ours.append(time.perf_counter() - self._started)
        for bare, taken in zip(self._bare, self.theirs, strict=True):
            taken.append(bare.epoch(trainer.precision_plugin.forward_context, pl_module.device))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def overhead(settings: FinetuneSettings, steps: int, rounds: int) -> dict[str, Any]:
    """Compare training with the bare loops."""
    settings = replace(settings, train=replace(settings.train, epochs=rounds + 1))
    data = finetuning._data(settings)
    torch.manual_seed(0)
    turns = InTurns(Bare(settings, data, steps), Bare(settings, data, steps, told=False))
    net = SpectrogramNet(settings.backbone, len(data.labels)).to(memory_format=torch.channels_last)
    model = Classifier(net, settings.train, settings.seed, data.class_weights(), data.prior(), possible=data.possible())
    trainer = make_trainer(settings, settings.folder, Curves(settings.folder))
    trainer.callbacks = [turns]  # type: ignore[attr-defined]  # no curves or checkpoints: they are written every epoch
    trainer.limit_train_batches, trainer.limit_val_batches = steps, 0
    trainer.fit(model, datamodule=data)
    ours, *others = (taken[1:] for taken in (turns.ours, *turns.theirs))  # the first warms up
    pictures = steps * settings.batch_size
    found = {
        "precision": str(trainer.precision),
        "steps_an_epoch": steps,
        "pictures_a_second": round(pictures / statistics.median(ours), 1),
    }
    for name, theirs in zip(("bare", "bare, all in bfloat16"), others, strict=True):
        ratios = [round(one / other, 3) for one, other in zip(ours, theirs, strict=True)]
        found[name] = {
            "pictures_a_second": round(pictures / statistics.median(theirs), 1),
            "times_as_long": {"median": round(statistics.median(ratios), 3), "rounds": ratios},
        }
    return found


def stages(settings: FinetuneSettings, steps: int, rounds: int) -> dict[str, Any]:
    """Remove parts of training, one after the other."""
    plain = replace(settings, mask=False, train=replace(settings.train, mixup=0.0))
    return {
        "all": overhead(settings, steps, rounds),
        "without mixup": overhead(replace(plain, mask=True), steps, rounds),
        "without mixup and masking": overhead(plain, steps, rounds),
    }


def refuse(*_: object) -> None:
    """Act as a network that cannot be divided."""
    raise ValueError


def prefix(settings: FinetuneSettings, epochs: int, rounds: int) -> dict[str, Any]:
    """Train with plans that freeze the first layers, with and without computing them once per picture, in turns."""
    found = {}
    for plan in ("head", "last-block"):
        train = replace(settings.train, plan=plan, mixup=0.0, epochs=epochs)
        taken: dict[str, list[float]] = {"once": [], "every epoch": []}
        for _ in range(rounds):
            for name, seconds in taken.items():
                whole = mock.patch.object(FrozenPrefix, "__init__", refuse) if name == "every epoch" else nullcontext()
                with whole, tempfile.TemporaryDirectory() as out:
                    started = time.perf_counter()
                    finetuning.finetune(replace(settings, train=train, mask=False, out=Path(out) / "run"))
                    seconds.append(time.perf_counter() - started)
        pairs = zip(taken["every epoch"], taken["once"], strict=True)
        found[plan] = {
            "epochs": epochs,
            "seconds_of_the_whole_run": {name: [round(one, 1) for one in seconds] for name, seconds in taken.items()},
            "times_as_fast": [round(slow / fast, 2) for slow, fast in pairs],
        }
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="a folder of rendered pictures")
    parser.add_argument("--backbone", default="mobilenet")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="epochs with --prefix")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--prefix", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        settings = FinetuneSettings(
            index=given.index,
            backbone=given.backbone,
            weights="none",
            batch_size=given.batch_size,
            out=Path(out) / "run",
            train=TrainingSettings(),
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
        )
        if given.prefix:
            with redirect_stdout(sys.stderr):
                found = prefix(settings, given.epochs, given.rounds)
        elif given.stages:
            found = stages(settings, given.steps, given.rounds)
        else:
            found = overhead(settings, given.steps, given.rounds)
    print(json.dumps({"backbone": given.backbone, "batch": given.batch_size, **found}, indent=2))


if __name__ == "__main__":
    main()
