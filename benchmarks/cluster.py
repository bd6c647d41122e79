"""What does a cluster cost for a folder run, and what is lost when part of the cluster fails?

python benchmarks/cluster.py FOLDER... --overhead [--recordings 20000] [--nodes 2 4] [--rounds 3]
python benchmarks/cluster.py FOLDER... --kills [--recordings 6000]     # of a node, then of the run itself, part-way
python benchmarks/cluster.py FOLDER... --memory 1000 200000 [--checkpoint FOLDER]    # peak memory of run and workers
python benchmarks/cluster.py FOLDER... --costs                         # inputs for a model of ten million recordings

The cluster is Ray's test cluster on this machine, with nodes of one CPU each, so that two nodes have as many cores as
the local run. It is started before timing begins. The recordings are those below FOLDER, repeated as links.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from clips import spread

from spectro.addresses import place
from spectro.predict.output.parts import Listing, parts_in
from spectro.predict.output.tables import shards

POLL_S = 0.2


def links(clips: list[Path], count: int, folder: Path) -> Path:
    """Return a folder with `count` links to recordings, a thousand per subfolder."""
    for number in range(count):
        clip = clips[number % len(clips)].resolve()
        one = folder / f"{number // 1000:04}" / f"{number:07}{clip.suffix}"
        one.parent.mkdir(parents=True, exist_ok=True)
        one.symlink_to(clip)
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """Return the command that classifies a folder."""
    return [sys.executable, "-m", "spectro", "predict", str(folder), "--out", str(out), *more]


def run(folder: Path, out: Path, *more: str) -> float:
    """Classify a folder; return the duration in seconds."""
    started = time.perf_counter()
    done = subprocess.run(command(folder, out, *more), stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """Run a cluster of nodes with one CPU each, and a head with none."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def rows(out: Path) -> pd.DataFrame:
    """Return the rows of a table in parts, sorted by path."""
    found = pd.concat([pd.read_parquet(part) for part in parts_in(out)], ignore_index=True)
    return found.sort_values("path", ignore_index=True)


def measure_overhead(folder: Path, work: Path, nodes: list[int], rounds: int) -> dict[str, Any]:
    """Time the local run and cluster runs in turns."""
    taken: dict[str, list[float]] = {}
    equal: dict[str, bool] = {}
    for turn in range(rounds):
        alone = work / f"alone-{turn}"
        taken.setdefault("alone", []).append(run(folder, alone))
        for count in nodes:
            name, out = f"{count} nodes", work / f"{count}-{turn}"
            with cluster(count) as made:
                taken.setdefault(name, []).append(run(folder, out, "--cluster", made.address))
            equal[name] = equal.get(name, True) and rows(out).equals(rows(alone))
            print(json.dumps({"turn": turn, "seconds": taken, "equal": equal}), file=sys.stderr)
    against = {
        name: [one / alone for one, alone in zip(seconds, taken["alone"], strict=True)]
        for name, seconds in taken.items()
        if name != "alone"
    }
    return {
        "seconds": {name: [round(one, 1) for one in values] for name, values in taken.items()},
        "against alone": {
            name: {"median": round(statistics.median(values), 3), "rounds": [round(one, 3) for one in values]}
            for name, values in against.items()
        },
        "rows equal": equal,
    }


def measure_kills(folder: Path, work: Path, count: int) -> dict[str, Any]:
    """Kill a node part-way, and in another run the run itself; count missing and duplicate rows."""
    whole, found = work / "whole", {}
    run(folder, whole)
    expected = rows(whole)
    for kind in ("node", "run"):
        out = work / kind
        with cluster(2) as made:
            child = subprocess.Popen(
                command(folder, out, "--cluster", made.address),
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            while len(parts_in(out)) < 0.4 * count / max(50, count // 64) and child.poll() is None:
                time.sleep(POLL_S)
            there = len(rows(out))
            if kind == "node":
                made.remove_node(next(iter(made.worker_nodes)), allow_graceful=False)
                made.add_node(num_cpus=1)
                _out, told = child.communicate()
                again = None
            else:
                os.kill(child.pid, signal.SIGKILL)
                child.communicate()
                done = subprocess.run(
                    command(folder, out, "--cluster", made.address), stderr=subprocess.PIPE, text=True, check=False
                )
                told, again = done.stderr, done.returncode
        table = rows(out)
        found[kind] = {
            "rows when it was killed": there,
            "exit code": child.returncode if again is None else again,
            "lost": len(set(expected["path"]) - set(table["path"])),
            "twice": int(table["path"].duplicated().sum()),
            "equal": bool(table.equals(expected)),
            "last line": told.strip().splitlines()[-1],
        }
        print(json.dumps(found), file=sys.stderr)
    return found


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in KiB; unlike memory of its own, other processes do not change it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def measure_memory(clips: list[Path], counts: list[int], work: Path, *more: str) -> dict[str, Any]:
    """Return the peak memory of the run and of its largest worker, in MiB."""
    found: dict[str, Any] = {}
    for count in counts:
        folder = links(clips, count, work / f"links-{count}")
        with cluster(2) as made:
            log = work / f"memory-{count}.log"
            with log.open("w") as told:
                child = subprocess.Popen(
                    command(folder, work / f"memory-{count}", "--cluster", made.address, *more), stderr=told
                )
            most, ended = {"run": 0, "worker": 0}, threading.Event()
            while child.poll() is None:
                for process in psutil.process_iter(["cmdline"]):
                    line = " ".join(process.info["cmdline"] or [])
                    kind = "run" if process.pid == child.pid else "worker" if "MapWorker" in line else None
                    if kind:
                        most[kind] = max(most[kind], anonymous(process.pid))
                ended.wait(POLL_S)
        if child.returncode:
            raise SystemExit(log.read_text())
        found[str(count)] = {kind: round(value / 2**10) for kind, value in most.items()}
        print(json.dumps(found), file=sys.stderr)
    return found


def measure_costs(clips: list[Path], work: Path) -> dict[str, Any]:
    """Return the inputs for a model of larger runs."""
    few, many = links(clips, 100, work / "few"), links(clips, 6000, work / "many")
    started = time.perf_counter()
    with Listing(place(one) for one in sorted(many.rglob("*.*"))) as listing:
        listed_s = (time.perf_counter() - started) / len(listing.keys)
    with cluster(2) as made:
        start_s = run(few, work / "few-out", "--cluster", made.address)
        many_s = run(many, work / "many-out", "--cluster", made.address)
    size = sum(part.stat().st_size for part in shards(work / "many-out"))
    return {
        "start of a run, s": round(start_s, 1),
        "of a processor, ms a recording": round(2 * (many_s - start_s) / 5900 * 1000, 2),
        "listing, ms a recording": round(listed_s * 1000, 4),
        "bytes of a row": round(size / 6000),
        "bytes of a recording": round(statistics.mean(one.stat().st_size for one in clips)),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="folders of recordings")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--kills", action="store_true")
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--checkpoint", type=Path, help="folder, for --memory; default: the shipped one")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--recordings", type=int, default=20_000)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    clips = [clip for source in given.sources for clip in spread(parser, source)]
    found: dict[str, Any] = {"recordings": given.recordings, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if given.overhead or given.kills:
            folder = links(clips, given.recordings, work / "links")
        if given.overhead:
            found["overhead"] = measure_overhead(folder, work, given.nodes, given.rounds)
        if given.kills:
            found["kills"] = measure_kills(folder, work, given.recordings)
        if given.memory:
            more = ["--checkpoint", str(given.checkpoint)] if given.checkpoint else []
            found["memory, MiB"] = measure_memory(clips, given.memory, work, *more)
        if given.costs:
            found["costs"] = measure_costs(clips, work)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
