"""Is a recording's timeline as accurate as the network on its clips, and how much memory do two hours take?

    python benchmarks/timeline.py RAVDESS_FOLDER --checkpoint FOLDER [--actors 2 5 14 15 16] [--smooth_s 2 8]

The clips of each actor are joined in a random order (seed 0), and so that each emotion lasts for four clips. Each
recording's timeline, where it is not silence, is compared with the true emotions, weighted by duration.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from sklearn.metrics import recall_score

from spectro.corpora import registry
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import SILENCE, timeline
from spectro.predict.timeline.windows import WindowSettings

CLIPS_IN_A_ROW = 4


def orders(clips: pd.DataFrame, generator: np.random.Generator) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the name of each order, and the clips in that order."""
    yield "another emotion at any clip", clips.sample(frac=1, random_state=generator)
    groups = []
    for _, same in clips.groupby("emotion"):
        mixed = same.sample(frac=1, random_state=generator)
        groups += [mixed.iloc[start : start + CLIPS_IN_A_ROW] for start in range(0, len(mixed), CLIPS_IN_A_ROW)]
    yield (
        "four clips of an emotion in a row",
        pd.concat([groups[place] for place in generator.permutation(len(groups))]),
    )


def join(paths: list[str], place: Path) -> list[float]:
    """Write recordings joined into one; return where each ends, in seconds."""
    parts = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        parts.append(samples.mean(axis=1))
    soundfile.write(place, np.concatenate(parts), rate, subtype="PCM_16")
    ends: list[float] = (np.cumsum([len(part) for part in parts]) / rate).tolist()
    return ends


def seconds(predictor: Predictor, place: Path, truths: pd.DataFrame, smooth_s: float) -> pd.DataFrame:
    """Return, for each piece of sound within a clip, its length, its true emotion, and the timeline's label."""
    rows = []
    spans = list(zip(truths.index, truths["emotion"], truths["start_s"], truths["end_s"], strict=True))
    for one in timeline(predictor, place, WindowSettings(smooth_s=smooth_s)):
        if one.label == SILENCE:
            continue
        for clip, emotion, start_s, end_s in spans:
            length = min(one.end_s, end_s) - max(one.start_s, start_s)
            if length > 0:
                rows.append({"clip": clip, "truth": emotion, "said": one.label, "seconds": length})
    return pd.DataFrame(rows)


def shares(found: pd.DataFrame) -> dict[str, float]:
    """Return the shares of sound and of clips that the timeline labels correctly, and the UAR."""
    votes = found.groupby(["clip", "truth", "said"])["seconds"].sum().reset_index()
    votes = votes.sort_values("seconds").groupby("clip").tail(1)
    right = found["truth"] == found["said"]
    return {
        "share of sound": found.loc[right, "seconds"].sum() / found["seconds"].sum(),
        "share of clips": float((votes["truth"] == votes["said"]).mean()),
        "UAR over clips": float(recall_score(votes["truth"], votes["said"], average="macro")),
    }


def cost(path: Path, out: Path) -> dict[str, float]:
    """Return the peak memory of the timeline verb on a recording, its time with start-up, and its number of rows."""
    code = (
        "import sys; from spectro.cli import main; code = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "timeline", str(path), "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    return {"peak MiB": int(done.stdout.splitlines()[-1]) / 1024, "seconds": seconds, "rows": len(pd.read_csv(out))}


def memory(clips: pd.DataFrame, folder: Path) -> dict[str, dict[str, float]]:
    """Return the cost of timelines of a clip, and of clips joined to ten minutes and to two hours."""
    found = {"a clip": cost(Path(clips["path"].iloc[0]), folder / "clip.csv")}
    for name, least_s in (("ten minutes", 600.0), ("two hours", 7200.0)):
        place, total = folder / f"{name}.flac", 0.0
        with soundfile.SoundFile(place, "w", 48_000, 1) as file:
            for path in itertools.cycle(clips["path"]):
                samples = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
                file.write(samples)
                total += len(samples) / 48_000
                if total >= least_s:
                    break
        found[name] = cost(place, folder / f"{name}.csv")
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="RAVDESS, as folders of WAV files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a network that was not trained on the actors")
    parser.add_argument("--actors", nargs="+", type=int, help="default: the checkpoint's test actors")
    parser.add_argument("--smooth_s", nargs="+", type=float, default=[2.0, 8.0])
    parser.add_argument("--memory", action="store_true", help="also measure memory")
    given = parser.parse_args()
    predictor = Predictor(given.checkpoint)
    split = predictor.checkpoint.split
    if split is None:
        parser.error(f"{given.checkpoint}: does not say whom it was trained on; choose another checkpoint")
    actors = list(map(str, given.actors or split.speakers["test"]))
    if not actors or set(actors) & set(split.speakers["train"]):
        parser.error(f"{given.checkpoint}: was trained on these actors; choose another checkpoint, or other --actors")
    table = registry.scan("ravdess", given.source).clips
    table = table[table["speaker"].isin(actors)].reset_index(drop=True)
    alone = pd.Series([row.label for row in predictor.predict_folder(*table["path"])])
    truth = table["emotion"]
    results: dict[str, object] = {
        "clips": len(table),
        "clip by clip": {
            "share of clips": float((alone == truth).mean()),
            "UAR over clips": float(recall_score(truth, alone, average="macro")),
        },
    }
    generator = np.random.default_rng(0)
    joined: dict[str, list[tuple[Path, pd.DataFrame]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for speaker, clips in table.groupby("speaker"):
            for kind, order in orders(clips, generator):
                place = Path(name) / f"{speaker}-{len(joined)}-{kind.replace(' ', '-')}.wav"
                ends = join(order["path"].tolist(), place)
                joined.setdefault(kind, []).append((place, order.assign(start_s=[0.0, *ends[:-1]], end_s=ends)))
        for kind, recordings in joined.items():
            for smooth_s in given.smooth_s:
                parts = [seconds(predictor, place, truths, smooth_s) for place, truths in recordings]
                results[f"{kind}, smooth_s {smooth_s:g}"] = shares(pd.concat(parts))
        if given.memory:
            results["memory"] = memory(table, Path(name))
    print(json.dumps(json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4)), indent=2))


if __name__ == "__main__":
    main()
