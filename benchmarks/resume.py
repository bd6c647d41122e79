"""Kill a folder run of 2,000 recordings repeatedly: does it end with the table of an uninterrupted run?

python benchmarks/resume.py RAVDESS_FOLDER [--files 2000] [--kills 4]
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from clips import spread

from spectro.predict.output.journal import beside


def command(folder: Path, out: Path) -> list[str]:
    """Return the command that classifies a folder."""
    return [sys.executable, "-m", "spectro", "predict", str(folder), "--out", str(out)]


def entered(out: Path) -> list[str]:
    """Return the lines of a table's journal, without the first."""
    return beside(out).read_text().splitlines()[1:] if beside(out).exists() else []


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of recordings")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=4)
    given = parser.parse_args()
    clips = spread(parser, given.source)
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        folder.mkdir()
        for number in range(given.files):
            clip = clips[number % len(clips)].resolve()
            (folder / f"{number:05}{clip.suffix}").symlink_to(clip)
        whole, killed = Path(name) / "whole.csv", Path(name) / "killed.csv"
        started = time.perf_counter()
        subprocess.run(command(folder, whole), check=True, stderr=subprocess.DEVNULL)
        alone_s = time.perf_counter() - started
        reached = []
        for kill in range(given.kills):
            child = subprocess.Popen(command(folder, killed), stderr=subprocess.DEVNULL)
            goal = (kill + 1) * given.files // (given.kills + 1)
            while len(entered(killed)) < goal and child.poll() is None:
                time.sleep(0.05)
            time.sleep(moments.random() / 10)
            child.send_signal(signal.SIGKILL)
            child.wait()
            reached.append(len(entered(killed)))
        subprocess.run(command(folder, killed), check=True, stderr=subprocess.DEVNULL)
        one, other = pd.read_csv(whole), pd.read_csv(killed)
        paths = [json.loads(line)["path"] for line in entered(killed)]
        numbers = one.select_dtypes("number").columns
        content = {
            "files": given.files,
            "seconds without a kill": round(alone_s, 1),
            "killed after": reached,
            "rows": len(other),
            "lost": len(set(one["path"]) - set(other["path"])),
            "twice in table or journal": len(other) - other["path"].nunique() + len(paths) - len(set(paths)),
            "same order and labels": bool((one[["path", "label"]] == other[["path", "label"]]).all(axis=None)),
            "largest difference of a number": float(np.abs(one[numbers] - other[numbers]).max().max()),
        }
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
