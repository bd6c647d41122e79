"""How fast are prediction engines, the pipeline around them, and start-up?

python benchmarks/prediction.py RAVDESS_FOLDER --engines     # the network alone, against eager PyTorch in float32
python benchmarks/prediction.py RAVDESS_FOLDER --agreement   # do engines and precisions predict the same labels?
python benchmarks/prediction.py RAVDESS_FOLDER --pipeline    # folders, against rendering alone and the network alone
python benchmarks/prediction.py RAVDESS_FOLDER --cold        # the command's first result, against its imports

Variants take turns in one run. `--backbone vgg19` measures that network, with random weights.
"""

import argparse
import json
import os
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

from spectro.engines.base import EngineName, Precision, batch
from spectro.engines.export import export
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet
from spectro.model.checkpoint import Checkpoint
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import Description
from spectro.picture.spec import SpectrogramSpec
from spectro.predict.batches import score_all
from spectro.predict.predictor import Predictor
from spectro.processes import threads

KINDS: list[tuple[EngineName, Precision]] = [
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnx", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]


def seconds(work: Callable[..., object], *given: Any, **named: Any) -> float:
    """Return the duration of a call."""
    started = time.perf_counter()
    work(*given, **named)
    return time.perf_counter() - started


def ratios(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Return the median ratio over rounds, and the ratio of each round."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": round(statistics.median(values), 3), "rounds": [round(value, 3) for value in values]}


def predictors(folder: Path, exported: Path) -> dict[str, Predictor]:
    """Return a predictor for each engine and precision."""
    return {
        f"{engine} {precision}": Predictor(
            folder if engine == "torch" else exported, device="cpu", engine=engine, precision=precision
        )
        for engine, precision in KINDS
    }


def score_each(predictor: Predictor, batches: list[np.ndarray]) -> None:
    """Score batches, one after the other."""
    for one in batches:
        predictor.engine.scores(one)


def measure_engines(made: dict[str, Predictor], pictures: list[np.ndarray], rounds: int) -> dict[str, Any]:
    """Time batches of 32 and of 1 in turns."""
    found: dict[str, Any] = {}
    for size, count in ((32, 4), (1, 24)):
        some = [batch(pictures[place * size : (place + 1) * size]) for place in range(count)]
        taken: dict[str, list[float]] = {name: [] for name in made}
        for predictor in made.values():
            predictor.engine.scores(some[0])
        for _ in range(rounds):
            for name, predictor in made.items():
                taken[name].append(seconds(score_each, predictor, some) / (count * size))
        found[f"batches of {size}"] = {
            name: {
                "pictures_a_second": round(1 / statistics.median(values), 1),
                "times_as_fast_as_torch_float32": ratios(taken["torch float32"], values),
            }
            for name, values in taken.items()
        }
    return found


def measure_agreement(made: dict[str, Predictor], pictures: list[np.ndarray]) -> dict[str, Any]:
    """Compare labels and probabilities with those of PyTorch in float32."""
    probabilities = {
        name: np.concatenate([p.scores(pictures[at : at + 32]).probabilities for at in range(0, len(pictures), 32)])
        for name, p in made.items()
    }
    expected = probabilities["torch float32"]
    return {
        name: {
            "pictures": len(pictures),
            "same_label": float((values.argmax(1) == expected.argmax(1)).mean()),
            "largest_difference": float(np.abs(values - expected).max()),
        }
        for name, values in probabilities.items()
    }


def measure_pipeline(made: dict[str, Predictor], clips: list[Path], rounds: int) -> dict[str, Any]:
    """Compare folders with their two stages, and a warm clip with its stages."""
    found = {}
    for name, predictor in made.items():
        pictures = [predictor.render(clip) for clip in clips]
        empty = predictor.scores(pictures[:1])

        class Drawn:
            """Scores nothing, so that only rendering is timed."""

            checkpoint = predictor.checkpoint
            judge = predictor.judge

            def scores(self, some: list[np.ndarray], answer: Any = empty) -> Any:
                return type(answer)(
                    np.repeat(answer.probabilities, len(some), 0), np.repeat(answer.embeddings, len(some), 0)
                )

        def folder(one: Predictor = predictor) -> None:
            list(one.predict_folder(*clips))

        def drawing(one: Predictor = predictor, drawn: Any = Drawn) -> None:
            list(score_all(drawn(), clips, one.render))

        def network(one: Predictor = predictor, some: list[np.ndarray] = pictures) -> None:
            for at in range(0, len(some), 32):
                one.scores(some[at : at + 32])

        def warm(one: Predictor = predictor) -> None:
            for clip in clips[:16]:
                one.predict_wav(clip)

        def apart(one: Predictor = predictor) -> None:
            for clip in clips[:16]:
                one.engine.scores(batch([one.render(clip)]))

        taken: dict[str, list[float]] = {}
        for _ in range(rounds + 1):
            for work in (folder, drawing, network, warm, apart):
                taken.setdefault(work.__name__, []).append(seconds(work))
        taken = {stage: values[1:] for stage, values in taken.items()}  # the first warms up
        slower = [max(pair) for pair in zip(taken["drawing"], taken["network"], strict=True)]
        both = [sum(pair) for pair in zip(taken["drawing"], taken["network"], strict=True)]
        found[name] = {
            "clips_a_second": {
                stage: round(len(clips) / statistics.median(taken[stage])) for stage in ("folder", "drawing", "network")
            },
            "of_the_slower_stage_alone": ratios(slower, taken["folder"]),
            "of_both_stages_one_after_the_other": ratios(both, taken["folder"]),
            "warm_clip_ms": round(statistics.median(taken["warm"]) / 16 * 1000, 2),
            "warm_clip_over_drawing_and_network": ratios(taken["warm"], taken["apart"]),
        }
    return found


BARE = {
    "torch": """
import numpy, scipy.fft, scipy.sparse, soundfile, soxr, PIL.Image, tqdm, jsonargparse, torch, timm
from safetensors.torch import load_file
from spectro.model.backbones import SpectrogramNet
net = SpectrogramNet(sys.argv[2], 8).eval()
load_file(sys.argv[1] + "/model.safetensors")
net(torch.zeros(shape))
""",
    "onnx": """
import numpy, scipy.fft, scipy.sparse, soundfile, soxr, PIL.Image, tqdm, jsonargparse, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
session.run(None, {"pictures": numpy.zeros(shape, numpy.uint8)})
""",
    "openvino": """
import numpy, scipy.fft, scipy.sparse, soundfile, soxr, PIL.Image, tqdm, jsonargparse, openvino
net = openvino.Core().compile_model(sys.argv[1] + "/model.onnx", "CPU")
net(numpy.zeros(shape, numpy.uint8))
""",
}


def measure_cold(folder: Path, exported: Path, clip: Path, rounds: int) -> dict[str, Any]:
    """Compare `spectro predict CLIP` with a program that imports the same libraries and runs the network once."""
    found = {}
    about = Description.read(folder)
    shape = batch([np.zeros(about.spec.shape, np.uint8)]).shape
    for engine, bare in BARE.items():
        place = str(folder if engine == "torch" else exported)
        command = [sys.executable, "-m", "spectro", "predict", str(clip), "--checkpoint", place, "--engine", engine]
        # Importing spectro costs nothing and keeps OpenVINO from reporting, which would take time.
        program = [sys.executable, "-c", f"import sys, spectro\nshape = {shape}\n{bare}", place, about.backbone]
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        ours, theirs = [], []
        for _ in range(rounds + 1):
            ours.append(seconds(subprocess.run, command, **quiet))
            theirs.append(seconds(subprocess.run, program, **quiet))
        found[engine] = {
            "command_s": round(statistics.median(ours[1:]), 2),
            "libraries_s": round(statistics.median(theirs[1:]), 2),
            "command_over_libraries": ratios(ours[1:], theirs[1:]),
            "slowest_imports_ms": slowest_imports(command[3:]),
        }
    return found


def slowest_imports(arguments: list[str], count: int = 12) -> dict[str, float]:
    """Return the packages whose own modules take longest to import for a command, in milliseconds."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "spectro", *arguments], check=True, capture_output=True, text=True
    ).stderr
    own: dict[str, float] = {}
    for line in told.splitlines():
        if line.startswith("import time:") and line.count("|") == 2 and "self" not in line:
            took, _total, name = line.removeprefix("import time:").split("|")
            package = name.strip().partition(".")[0]
            own[package] = own.get(package, 0) + int(took) / 1000
    return {name: round(own[name], 1) for name in sorted(own, key=own.__getitem__, reverse=True)[:count]}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of recordings")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--backbone", help="a network with random weights, instead of a checkpoint")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    for what in ("engines", "agreement", "pipeline", "cold"):
        parser.add_argument(f"--{what}", action="store_true")
    given = parser.parse_args()
    clips = spread(parser, given.source, max(128, given.clips))
    if given.engines and len(clips) < 128:
        parser.error(f"{given.source}: holds {len(clips)} recordings; --engines needs 128")
    with tempfile.TemporaryDirectory() as name:
        folder = given.checkpoint or default_checkpoint()
        if given.backbone:
            folder, spec = Path(name) / "net", SpectrogramSpec()
            net = SpectrogramNet(given.backbone, 8).eval()
            checkpoints.save(Checkpoint.of(net=net, labels=tuple("abcdefgh"), spec=spec), folder)
        exported = Path(name) / "exported"
        drawer = Predictor(folder, engine="torch")
        export(folder, exported, [drawer.render(clip) for clip in clips[:32]])
        found: dict[str, Any] = {
            "threads": os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()} cores"),
            "reading_threads": threads(),
        }
        if given.cold:
            found["cold"] = measure_cold(folder, exported, clips[0], given.rounds)
        if given.engines or given.agreement or given.pipeline:
            made = predictors(folder, exported)
            found["engines"] = [predictor.engine.name for predictor in made.values()]
        if given.agreement:
            found["agreement"] = measure_agreement(made, [drawer.render(clip) for clip in clips])
        if given.engines:
            found["network"] = measure_engines(made, [drawer.render(clip) for clip in clips[:128]], given.rounds)
        if given.pipeline:
            found["pipeline"] = measure_pipeline(made, clips[:192], given.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
