"""Mutated recordings, pictures and checkpoints: no process dies, each file gets one row, and memory stays constant.

    python benchmarks/mutations.py CLIP [--recordings 8000] [--pictures 1500] [--checkpoints 500]

Recordings in ten formats and rendered pictures are truncated, have bytes changed (mostly in headers), are doubled, or
are replaced with noise. `spectro predict` classifies the folder, and its memory is read ten times a second. Then one
process loads mutated copies of the shipped checkpoint in turn, with changes in the description or the weights (mostly
their header). Each must give a checkpoint error or probabilities that sum to one.
"""

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

import spectro
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import DESCRIPTION_FILE, WEIGHTS_FILE
from spectro.picture import png

KINDS = {
    "wav": {},
    "float.wav": {"subtype": "FLOAT"},
    "flac": {},
    "ogg": {},
    "opus.ogg": {"subtype": "OPUS"},
    "mp3": {},
    "aiff": {},
    "au": {},
    "w64": {},
    "caf": {},
}
HEADER = 400  # bytes in which most changes fall
ODD: tuple[Any, ...] = (None, True, -1, 0, 224.5, 10**6, 10**12, float("nan"), "", "x" * 99, [], [["a"]], {}, "unsure")
"""Replacements for values in a checkpoint's description."""


def encoded(clip: Path) -> dict[str, bytes]:
    """Return the clip in every format, keyed by file extension."""
    samples, rate = soundfile.read(clip, dtype="float32")
    samples = samples[: 3 * rate]
    found = {}
    for ending, options in KINDS.items():
        buffer = io.BytesIO()
        kind, high = ending.rpartition(".")[2].upper(), 48_000 if "opus" in ending else rate
        soundfile.write(buffer, samples, high, format=kind, **options)
        found[ending] = buffer.getvalue()
    return found


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """Return a file truncated, with bytes changed, doubled, with a piece removed, or replaced with noise."""
    way = generator.integers(10)
    if way == 0:
        return generator.bytes(int(generator.integers(0, 5000)))
    if way == 1:
        return content + content
    changed = bytearray(content)
    if way < 4:
        del changed[generator.integers(len(changed)) :]
    if way == 4:
        begin = int(generator.integers(len(changed)))
        del changed[begin : begin + int(generator.integers(1, 400))]
    reach = HEADER if way < 8 else len(changed)
    for place in generator.integers(min(reach, max(1, len(changed))), size=generator.integers(1, 12)):
        if place < len(changed):
            changed[place] = generator.choice([0, 255, 127, 128, int(generator.integers(256))])
    return bytes(changed)


def write_files(folder: Path, clip: Path, recordings: int, pictures: int, generator: np.random.Generator) -> None:
    """Write mutated recordings and pictures."""
    wholes = list(encoded(clip).items())
    predictor = spectro.load()
    picture = png.encode(predictor.render(clip), predictor.checkpoint.spec, "clip")
    for number in range(recordings):
        ending, whole = wholes[number % len(wholes)]
        (folder / f"{number:05}.{ending}").write_bytes(mutated(whole, generator))
    for number in range(pictures):
        (folder / f"{number:05}.png").write_bytes(mutated(picture, generator))


def classify(folder: Path, out: Path) -> dict[str, Any]:
    """Run `spectro predict` on all files of a folder; return its results, and its memory in each quarter."""
    listed = folder.parent / "list.txt"
    listed.write_text("\n".join(str(path) for path in sorted(folder.iterdir())))
    command = [sys.executable, "-m", "spectro", "predict", str(listed), "--out", str(out)]
    with (folder.parent / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
        watched, memory = psutil.Process(process.pid), []
        while process.poll() is None:
            try:
                memory.append(watched.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.1)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    quarters = np.array_split(np.array(memory), 4)
    return {
        "exit code": process.wait(),
        "files": len(list(folder.iterdir())),
        "rows": len(rows),
        "files with one row": sum(count == 1 for count in Counter(row["path"] for row in rows).values()),
        "answered": sum(not row["error"] for row in rows),
        "answers that are not finite": sum(row["confidence"] == "nan" for row in rows),
        "longest error": max(len(row["error"]) for row in rows),
        "memory in each quarter of the time, in MiB, median": [round(float(np.median(part))) for part in quarters],
        "largest": [round(float(part.max())) for part in quarters],
    }


def broken_descriptions(content: dict[str, Any], generator: np.random.Generator) -> Iterator[bytes]:
    """Yield descriptions with a value replaced or removed, or with bytes changed, endlessly."""
    while True:
        copy = json.loads(json.dumps(content))
        place = copy
        while True:
            key = str(generator.choice(list(place)))
            if not (isinstance(place[key], dict) and place[key] and generator.random() < 0.7):
                break
            place = place[key]
        way = generator.integers(4)
        if way == 0:
            del place[key]
        elif way == 1 and isinstance(place[key], list) and place[key]:
            place[key] = [ODD[generator.integers(len(ODD))] for _ in place[key]]
        else:
            place[key] = ODD[generator.integers(len(ODD))]
        text = json.dumps(copy).encode()
        yield mutated(text, generator) if way == 3 else text


def load_broken(work: Path, count: int) -> dict[str, Any]:
    """Load mutated checkpoints in this process; return the outcomes, and the memory after each quarter."""
    generator = np.random.default_rng(1)
    shipped = default_checkpoint()
    weights = (shipped / WEIGHTS_FILE).read_bytes()
    descriptions = broken_descriptions(json.loads((shipped / DESCRIPTION_FILE).read_text()), generator)
    outcomes: Counter[str] = Counter()
    memory = []
    for number in range(count):
        folder = work / "checkpoint"
        shutil.copytree(shipped, folder, dirs_exist_ok=True)
        if number % 4:
            (folder / DESCRIPTION_FILE).write_bytes(next(descriptions))
        else:
            (folder / WEIGHTS_FILE).write_bytes(mutated(weights, generator))
        try:
            predictor = spectro.load(folder, engine="torch", device="cpu")
            found = predictor.predict_pixels([np.zeros(predictor.checkpoint.spec.shape, np.uint8)])[0]
            good = abs(sum(found.probabilities.values()) - 1) < 1e-6
            outcomes["answered" if good else "WRONG PROBABILITIES"] += 1
        except spectro.SpectroError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - unexpected errors are counted here
            outcomes[f"TRACE {type(error).__name__}: {error}"[:200]] += 1
        shutil.rmtree(folder)
        if (number + 1) % max(1, count // 4) == 0:
            memory.append(round(psutil.Process().memory_info().rss / 2**20))
    return {"outcomes": dict(outcomes), "memory at each quarter, in MiB": memory}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="a recording to mutate")
    parser.add_argument("--recordings", type=int, default=8000)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--checkpoints", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = work / "files"
        files.mkdir()
        write_files(files, given.clip, given.recordings, given.pictures, np.random.default_rng(0))
        found = {"recordings and pictures": classify(files, work / "rows.csv")}
        found["checkpoints"] = load_broken(work, given.checkpoints)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
