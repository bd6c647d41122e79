"""Run the tests repeatedly, in random order or beside a busy loop: do they always pass, and how fast?

python benchmarks/steady.py [--runs 10] [--busy 1] [--random] [--out steady.csv] [-- ARGUMENTS OF PYTEST]

Each run adds a line to the CSV and writes its log beside it. The exit code is 1 if any run failed.
"""

import argparse
import csv
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COLUMNS = ("run", "seed", "busy", "seconds", "passed", "failed", "skipped", "code")
REPOSITORY = Path(__file__).resolve().parents[1]


def spin() -> None:
    """Keep one core busy."""
    while True:
        pass


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep cores busy while the block runs."""
    processes = [multiprocessing.Process(target=spin, daemon=True) for _ in range(loops)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def command(seed: int | None, extra: list[str]) -> list[str]:
    """Return the command that `make test-all` or `make test-random` runs after `make lint`."""
    order = [] if seed is None else ["--random-order", f"--random-order-seed={seed}"]
    workers = ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
    return [sys.executable, "-m", "pytest", *workers, "-m", "", *order, *extra]


def counted(said: str, kind: str) -> int:
    """Return the number of tests of a kind in pytest's last line, such as `1 failed, 9 passed in 3.21s`."""
    last = [line for line in said.splitlines() if re.search(r" in \d+\.\d+s", line)][-1:]
    return sum(int(number) for number in re.findall(rf"(\d+) {kind}", "".join(last)))


def main() -> int:
    """Run the tests, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--busy", type=int, default=0, help="number of cores to keep busy")
    parser.add_argument("--random", action="store_true", help="run the tests in a different random order each time")
    parser.add_argument("--out", type=Path, default=Path("steady.csv"))
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    given = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    green = True
    with given.out.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for run in range(1, given.runs + 1):
            seed = int(time.time()) if given.random else None
            log = given.out.with_name(f"{given.out.stem}-{run}.log")
            started = time.monotonic()
            with busy(given.busy), log.open("w") as output:
                code = subprocess.run(
                    command(seed, given.pytest), cwd=REPOSITORY, env=environment, stdout=output, stderr=output
                ).returncode
            seconds, said = round(time.monotonic() - started), log.read_text(errors="replace")
            counts = [
                counted(said, "passed"),
                counted(said, "failed") + counted(said, "error"),
                counted(said, "skipped"),
            ]
            writer.writerow([run, seed, given.busy, seconds, *counts, code])
            stream.flush()
            green = green and code == 0
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main())
