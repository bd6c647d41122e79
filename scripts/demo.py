"""The main workflow on the built-in corpus: render, fine-tune the shipped checkpoint, evaluate, classify a folder."""

import shlex
import sys
import time
from pathlib import Path

from spectro.cli import main

STEPS = (
    "render --copies 1 --out data/demo/images --spec checkpoints/mn04-voices/spectro.json",
    "finetune --index data/demo/images --weights checkpoints/mn04-voices --train.epochs 6 --out checkpoints/demo",
    "evaluate --checkpoint checkpoints/demo --index data/demo/images --out data/demo/report",
    "predict data/corpora/synthetic/speaker02 --checkpoint checkpoints/demo --out data/demo/predictions.csv",
)
RESULTS = {
    "pictures": "data/demo/images/images",
    "their index": "data/demo/images/index.parquet",
    "checkpoint and its card": "checkpoints/demo/card.md",
    "learning curves": "checkpoints/demo/curves.png",
    "confusion matrix": "data/demo/report/confusion.png",
    "recalls": "data/demo/report/recall.png",
    "figures": "data/demo/report/metrics.json",
    "predictions": "data/demo/predictions.csv",
}


def demo() -> int:
    """Run the steps; returns the first exit code other than 0, or 0."""
    started = time.perf_counter()
    for step in STEPS:
        print(f"\n$ spectro {step}", flush=True)
        code = main(shlex.split(step))
        if code:
            return code
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Look at:")
    for what, path in RESULTS.items():
        print(f"  {what:<24} {Path(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(demo())
