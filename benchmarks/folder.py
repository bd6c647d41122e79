"""How fast is a folder classified, compared with an earlier version and with alternatives?

python benchmarks/folder.py FOLDER --against CHECKOUT [--recordings 6000] [--rounds 3]   # the command, with start-up
python benchmarks/folder.py FOLDER --instead [--clips 24] [--rounds 3]                   # from recordings to labels
                                             [--opensoundscape PYTHON]

--against runs `spectro predict` of this version and of another, from its checkout and with its own default checkpoint.
It also runs this version with `--workers 1` and with other checkpoints (`--checkpoints`). All take turns.

--instead classifies the same clips in turns, in one process, with everything loaded. The alternatives are the Audio
Spectrogram Transformer in Hugging Face's audio-classification pipeline, as published except for random weights, and
DeepSpectrum's method: a matplotlib picture of a mel spectrogram, classified by an ImageNet network (VGG16's
architecture, random weights). Random weights take as long to compute as others. opensoundscape's `predict` (ResNet-18,
random weights) runs in a process of another environment, whose interpreter is PYTHON: it needs an older PyTorch.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from clips import spread
from cluster import links

import spectro

HERE = Path(__file__).resolve().parents[1]
"""The checkout of this version; `python -m` imports from the working folder first."""


def command(folder: Path, out: Path, *more: str, checkout: Path = HERE) -> float:
    """Classify a folder with the version in a checkout; return the duration in seconds."""
    arguments = [sys.executable, "-m", "spectro", "predict", str(folder), "--out", str(out), *more]
    started = time.perf_counter()
    done = subprocess.run(arguments, cwd=checkout, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


def with_checkpoint(folder: Path, checkpoint: Path) -> Callable[[Path], float]:
    """Return a function that classifies a folder with a checkpoint of this version."""
    return lambda out: command(folder, out, "--checkpoint", str(checkpoint.resolve()))


def measure_versions(clips: list[Path], given: argparse.Namespace) -> dict[str, Any]:
    """Time this version and another in turns."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = links(clips, given.recordings, work / "links")
        ways: dict[str, Callable[[Path], float]] = {
            "before": lambda out: command(folder, out, checkout=given.against),
            "now": lambda out: command(folder, out),
            "now, one process": lambda out: command(folder, out, "--workers", "1"),
            **{f"now, {one.name}": with_checkpoint(folder, one) for one in given.checkpoints},
        }
        some = links(clips, 3, work / "some")
        for place, more in enumerate(([], *(["--checkpoint", str(one.resolve())] for one in given.checkpoints))):
            command(some, work / f"warm-{place}.csv", *more)  # exports are made only once
        command(some, work / "warm.csv", checkout=given.against)
        for turn in range(given.rounds):
            for way, run in ways.items():
                taken.setdefault(way, []).append(run(work / f"{turn}-{len(way)}-{way[-3:]}.csv"))
            print(json.dumps(taken), file=sys.stderr)
    return {
        "recordings": given.recordings,
        "seconds": {way: [round(one, 1) for one in values] for way, values in taken.items()},
        "faster than before": against(taken, "before"),
    }


def against(taken: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Return how many times as fast as `name` each variant is: the median over rounds, and each round."""
    found = {}
    for way, values in taken.items():
        rounds = [theirs / ours for theirs, ours in zip(taken[name], values, strict=True)]
        found[way] = {"median": round(statistics.median(rounds), 2), "rounds": [round(one, 2) for one in rounds]}
    return {way: value for way, value in found.items() if way != name}


def by_transformers() -> Callable[[list[Path]], object]:
    """Return a function that classifies clips with the Audio Spectrogram Transformer in a pipeline."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

    network = ASTForAudioClassification(ASTConfig(num_labels=8)).eval()
    classify = pipeline("audio-classification", model=network, feature_extractor=ASTFeatureExtractor(), device="cpu")

    def run(clips: list[Path]) -> object:
        import librosa

        return [classify(librosa.load(clip, sr=16_000)[0]) for clip in clips]

    return run


def by_pictures() -> Callable[[list[Path]], object]:
    """Return a function that classifies clips with a network on matplotlib pictures."""
    import librosa
    import matplotlib
    import timm
    import torch
    from librosa.display import specshow
    from matplotlib import pyplot
    from PIL import Image

    matplotlib.use("agg")
    network = timm.create_model("vgg16", num_classes=8).eval()

    def run(clips: list[Path]) -> object:
        found = []
        for clip in clips:
            samples, rate = librosa.load(clip, sr=None)
            mel = librosa.power_to_db(librosa.feature.melspectrogram(y=samples, sr=rate), ref=np.max)
            figure = pyplot.figure(figsize=(2.24, 2.24), dpi=100)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.axis("off")
            specshow(mel, sr=rate, ax=axes, cmap="viridis")
            stream = io.BytesIO()
            figure.savefig(stream)
            pyplot.close(figure)
            pixels = np.asarray(Image.open(stream).convert("RGB"), np.float32).transpose(2, 0, 1) / 255
            with torch.inference_mode():
                found.append(network(torch.from_numpy(pixels)[None]).argmax())
        return found

    return run


OPENSOUNDSCAPE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from opensoundscape import CNN
from opensoundscape.ml.cnn_architectures import resnet18
architecture = resnet18(num_classes=8, weights=None)
network = CNN(architecture, classes=list("abcdefgh"), sample_duration=3.0, sample_rate=16_000)
network.device = "cpu"
for line in sys.stdin:
    clips = json.loads(line)
    scores = network.predict(clips, batch_size=32, num_workers=0, progress_bar=False)
    assert set(scores.index.get_level_values("file")) == set(clips), "some clips have no scores"
    print("classified", flush=True)
"""
"""Classifies the clips of each line, a JSON list of paths."""


def by_opensoundscape(python: Path) -> Callable[[list[Path]], object]:
    """Return a function that classifies clips with opensoundscape, in a process of another environment."""
    process = subprocess.Popen(
        [python, "-c", OPENSOUNDSCAPE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )

    def run(clips: list[Path]) -> object:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([str(clip) for clip in clips]) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line == "classified\n":
                return line
        raise SystemExit("opensoundscape failed")

    return run


def measure_instead(clips: list[Path], rounds: int, python: Path | None) -> dict[str, Any]:
    """Time spectro and the alternatives in turns."""
    predictor = spectro.load()
    ways: dict[str, Callable[[list[Path]], object]] = {
        "spectro": lambda some: list(predictor.predict_folder(*some)),
        "transformers' pipeline, AST": by_transformers(),
        "matplotlib and VGG16": by_pictures(),
        **({"opensoundscape, ResNet-18": by_opensoundscape(python)} if python else {}),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for run in ways.values():
        run(clips[:2])
    for _turn in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            run(clips)
            taken[way].append(time.perf_counter() - started)
    return {
        "clips": len(clips),
        "clips a second": {way: round(len(clips) / statistics.median(values), 1) for way, values in taken.items()},
        "spectro is faster by": {
            way: round(statistics.median(b / a for a, b in zip(taken["spectro"], values, strict=True)), 1)
            for way, values in taken.items()
            if way != "spectro"
        },
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of recordings")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    parser.add_argument("--instead", action="store_true")
    parser.add_argument("--opensoundscape", type=Path, help="an interpreter that has opensoundscape")
    parser.add_argument("--recordings", type=int, default=6000)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    if given.against:
        found["versions"] = measure_versions(spread(parser, given.source), given)
    if given.instead:
        found["instead"] = measure_instead(
            spread(parser, given.source, given.clips), given.rounds, given.opensoundscape
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
