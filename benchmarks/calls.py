"""How much faster do several processes follow a folder of long recordings?

python benchmarks/calls.py FOLDER [--calls 24] [--minutes 5] [--workers 1 2] [--rounds 3]

The recordings below FOLDER are joined to calls of a length. `spectro timeline` follows them with each number of
processes, in turns, with start-up. All tables are compared with the first one.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from clips import spread

from spectro.audio import recording

RATE = 16_000


def make(clips: list[Path], calls: int, minutes: float, folder: Path) -> None:
    """Write calls, joined from clips in turn."""
    endless = itertools.cycle(clips)
    for number in range(calls):
        with soundfile.SoundFile(folder / f"{number:04}.wav", "w", RATE, 1) as file:
            left = round(minutes * 60 * RATE)
            while left > 0:
                samples = recording.read(next(endless), sample_rate=RATE)[:left]
                file.write(samples)
                left -= len(samples)


def follow(folder: Path, out: Path, workers: int) -> float:
    """Follow a folder; return the duration in seconds."""
    command = [sys.executable, "-m", "spectro", "timeline", str(folder), "--out", str(out), "--workers", str(workers)]
    started = time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of recordings")
    parser.add_argument("--calls", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    taken: dict[int, list[float]] = {workers: [] for workers in given.workers}
    equal = True
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name) / "calls", Path(name) / "first.csv"
        folder.mkdir()
        make(spread(parser, given.source), given.calls, given.minutes, folder)
        for turn in range(given.rounds):
            for workers in given.workers:
                out = Path(name) / f"{workers}-{turn}.csv"
                taken[workers].append(follow(folder, out, workers))
                if not first.exists():
                    out.rename(first)
                    continue
                one, other = pd.read_csv(first), pd.read_csv(out)
                numbers = one.select_dtypes("number").columns
                equal &= one.drop(columns=numbers).equals(other.drop(columns=numbers))
                equal &= bool(np.allclose(one[numbers], other[numbers], atol=1e-6, equal_nan=True))
                print(json.dumps({"turn": turn, "seconds": taken, "rows equal": equal}), file=sys.stderr)
    base = taken[given.workers[0]]
    faster = {
        workers: [one / own for one, own in zip(base, seconds, strict=True)] for workers, seconds in taken.items()
    }
    found = {
        "calls": given.calls,
        "minutes": given.minutes,
        "seconds": {workers: [round(one, 1) for one in seconds] for workers, seconds in taken.items()},
        f"times as fast as {given.workers[0]}": {
            workers: {"median": round(statistics.median(values), 2), "rounds": [round(one, 2) for one in values]}
            for workers, values in faster.items()
        },
        "rows equal": equal,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
