"""How much faster do two processes train than one, and how much faster could they be?

python benchmarks/devices.py RENDERING [--backbone mobilenet] [--weights none] [--rounds 3] [--epochs 3] [--batch 32]

Three variants take turns, each process on one thread: one process; two that share each batch (`--devices 2 --strategy
ddp`); and two independent runs at once, which show what the machine's cores and memory allow. Times are those of the
epochs after the first, with validation, from `curves.csv`. The last validation losses of the first two variants are
given, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from spectro.rendering.index import read_index


def start(given: argparse.Namespace, out: Path, devices: int) -> subprocess.Popen[bytes]:
    """Start a run on `devices` processes."""
    options = {
        "index": given.rendering,
        "backbone": given.backbone,
        "weights": given.weights,
        "train.epochs": given.epochs,
        "batch_size": given.batch,
        "monitor": "last",
        "test": "false",
        "precision": "32-true",
        "accelerator": "cpu",
        "workers": 0,
        "devices": devices,
        "strategy": "ddp" if devices > 1 else "auto",
        "out": out,
    }
    command = [sys.executable, "-m", "spectro", "finetune", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(runs: dict[Path, subprocess.Popen[bytes]]) -> list[pd.DataFrame]:
    """Wait for runs; return their curves."""
    for out, process in runs.items():
        if process.wait():
            raise SystemExit(f"{out.name}: failed")
    return [pd.read_csv(out / "curves.csv") for out in runs]


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rendering", type=Path)
    parser.add_argument("--backbone", default="mobilenet")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    index, _spec = read_index(given.rendering)
    seconds: dict[str, list[float]] = {"one process": [], "two processes": [], "two runs at once, each": []}
    figures: dict[str, list[float]] = {"one process": [], "two processes": []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(given.rounds):
            folder = Path(name)
            kinds = {
                "one process": {folder / f"one-{turn}": 1},
                "two processes": {folder / f"two-{turn}": 2},
                "two runs at once, each": {folder / f"a-{turn}": 1, folder / f"b-{turn}": 1},
            }
            for kind, runs in kinds.items():
                curves = finished({out: start(given, out, devices) for out, devices in runs.items()})
                seconds[kind].append(statistics.mean(one["seconds"].iloc[1:].median() for one in curves))
                if kind in figures:
                    figures[kind].append(float(curves[0]["valid_loss"].iloc[-1]))
            print(json.dumps({"turn": turn, "seconds an epoch": seconds}), file=sys.stderr)
    one, two, both = seconds.values()
    found: dict[str, Any] = {
        "clips in the rendering": int((index["copy"] == 0).sum()),
        "seconds an epoch": {kind: [round(value, 2) for value in values] for kind, values in seconds.items()},
        "two processes are faster by": [round(a / b, 2) for a, b in zip(one, two, strict=True)],
        "two runs at once do more by": [round(2 * a / b, 2) for a, b in zip(one, both, strict=True)],
        "last validation loss": figures,
    }
    for name in ("two processes are faster by", "two runs at once do more by"):
        found[f"{name}, median"] = round(statistics.median(found[name]), 2)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
