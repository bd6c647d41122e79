"""How fast are clips rendered compared with other tools, and does this hold for many clips?

python benchmarks/rendering.py RAVDESS_FOLDER                  # against librosa, matplotlib and opensoundscape
python benchmarks/rendering.py RAVDESS_FOLDER --out /dev/shm   # the same, without a disk
python benchmarks/rendering.py RAVDESS_FOLDER --stages [--spec yamnet]   # where the time goes, and the limits
python benchmarks/rendering.py RAVDESS_FOLDER --stretch        # time stretching and pitch shifting, for copies
python benchmarks/rendering.py RAVDESS_FOLDER --grow 1000 100000   # the verb: time and memory over many clips

All methods do the same job: decode, one channel, 16 kHz, a log-mel picture of 224 x 224 (FFT of 2048, hop of 256), a
PNG on disk. matplotlib and opensoundscape resize the picture; the others do not need to. Each process computes in one
thread. opensoundscape is measured if it is installed.
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # before NumPy

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image
import psutil
import scipy.fft
import soundfile
import soxr
from clips import spread
from isal import isal_zlib

from spectro.audio import augment, recording
from spectro.audio.augment import Augmentation, AugmentSettings
from spectro.audio.highpass import highpass
from spectro.audio.stream import active
from spectro.files import content_mark, write_bytes
from spectro.model.pretrained import SPECS
from spectro.picture import frontend, png, spectrogram
from spectro.picture.spec import SpectrogramSpec
from spectro.rendering.render import TOGETHER
from spectro.rendering.worker import IMAGES, Job, Recipe, render_clips

SPEC = SpectrogramSpec(
    n_fft=2048, win_length=2048, hop_length=256, height=224, width=224, fmin=0, scale="clip_peak", low=-80, high=0,
    trim_db=None, placement="start",
)  # fmt: skip
Item = TypeVar("Item")
MEL = {"sr": SPEC.sample_rate, "n_fft": SPEC.n_fft, "hop_length": SPEC.hop_length, "n_mels": SPEC.height}


def by_spectro(path: Path, out: Path) -> None:
    """Render as the workers of `spectro render` do."""
    recipe = Recipe(out, SPEC, AugmentSettings(), 60.0, "benchmark")
    render_clips([Job(f"{path.parent.name}_{path.stem}", str(path), 0)], recipe)


def log_mel(path: Path) -> np.ndarray:
    """Return librosa's log-mel spectrogram, in dB below the peak, 224 frames."""
    import librosa

    samples, _rate = librosa.load(path, sr=SPEC.sample_rate)
    decibels = librosa.power_to_db(librosa.feature.melspectrogram(y=samples, **MEL), ref=np.max)
    fixed: np.ndarray = librosa.util.fix_length(decibels, size=SPEC.width, axis=1, constant_values=-80.0)
    return fixed


def by_pillow(path: Path, out: Path, colours: bool = False) -> None:
    """Render with librosa, and Pillow for the PNG."""
    gray = np.uint8(255 * (log_mel(path)[::-1] / 80 + 1))
    PIL.Image.fromarray(np.stack([gray] * 3, -1) if colours else gray).save(out / f"{path.parent.name}_{path.stem}.png")


def by_pillow_rgb(path: Path, out: Path) -> None:
    """Render with librosa, and Pillow for an RGB PNG."""
    by_pillow(path, out, colours=True)


def by_matplotlib(path: Path, out: Path) -> None:
    """Render as tutorials do: librosa's specshow, and savefig."""
    import matplotlib as mpl
    from librosa.display import specshow

    mpl.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(2.24, 2.24), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    specshow(log_mel(path), sr=SPEC.sample_rate, hop_length=SPEC.hop_length, ax=axes)
    figure.savefig(out / f"{path.parent.name}_{path.stem}.png")
    pyplot.close(figure)


def by_opensoundscape(path: Path, out: Path) -> None:
    """Render with opensoundscape's mel spectrogram, its to_image, and Pillow."""
    from opensoundscape import Audio
    from opensoundscape.spectrogram import MelSpectrogram

    samples = Audio.from_file(path, sample_rate=SPEC.sample_rate)
    shape = {"window_samples": SPEC.n_fft, "overlap_samples": SPEC.n_fft - SPEC.hop_length, "n_mels": SPEC.height}
    found = MelSpectrogram.from_audio(samples, **shape)
    found.to_image(shape=(SPEC.height, SPEC.width)).save(out / f"{path.parent.name}_{path.stem}.png")


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "spectro": by_spectro,
    "librosa + Pillow, gray": by_pillow,
    "librosa + Pillow, RGB": by_pillow_rgb,
    "librosa + matplotlib": by_matplotlib,
    "opensoundscape to image": by_opensoundscape,
}


def draw_some(way: str, paths: list[Path], out: Path) -> int:
    """Render some clips in a process; return their number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            WAYS[way](path, out)
    return len(paths)


def rate(pool: ProcessPoolExecutor, way: str, clips: list[Path]) -> float:
    """Return the clips per second of a method; its output is deleted."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "images").mkdir()
        chunks = [clips[start : start + TOGETHER] for start in range(0, len(clips), TOGETHER)]
        started = time.perf_counter()
        list(pool.map(draw_some, [way] * len(chunks), chunks, [Path(name)] * len(chunks)))
        return len(clips) / (time.perf_counter() - started)


def compare(clips: list[Path], rounds: int) -> dict[str, object]:
    """Measure all methods in turns, each with two processes of its own, and spectro also with one."""
    ways = dict(WAYS)
    try:
        import opensoundscape  # noqa: F401
    except (ImportError, RuntimeError):  # torchaudio raises the latter if it does not match PyTorch
        del ways["opensoundscape to image"]
    with ExitStack() as stack:
        pools = {way: (way, stack.enter_context(ProcessPoolExecutor(2))) for way in ways}
        pools["spectro, one process"] = ("spectro", stack.enter_context(ProcessPoolExecutor(1)))
        found: dict[str, list[float]] = {name: [] for name in pools}
        for way, pool in pools.values():  # imports, caches
            rate(pool, way, clips[:: len(clips) // 64 or 1])
        for _ in range(rounds):
            for name, (way, pool) in pools.items():
                found[name].append(rate(pool, way, clips))
    ours = found["spectro"]
    return {
        "clips_a_second": {name: round(statistics.median(values)) for name, values in found.items()},
        "spectro_times_as_fast": {
            name: {
                "median": round(statistics.median(a / b for a, b in zip(ours, values, strict=True)), 2),
                "rounds": [round(a / b, 2) for a, b in zip(ours, values, strict=True)],
            }
            for name, values in found.items()
            if name != "spectro"
        },
    }


def milliseconds(work: Callable[[Item], object], items: Sequence[Item], rounds: int) -> float:
    """Return the median over rounds of the mean time per item."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        for item in items:
            work(item)
        taken.append((time.perf_counter() - started) / len(items) * 1000)
    return round(statistics.median(taken), 3)


def stages(clips: list[Path], rounds: int, spec: SpectrogramSpec) -> dict[str, object]:
    """Time each stage in one thread, and its arithmetic at the machine's measured peak rate."""
    rate = spec.sample_rate
    decoded = [recording._decode(path, "", None) for path in clips]
    resampled = [soxr.resample(found, file_rate, rate, quality="HQ") for found, file_rate in decoded]
    clean = [highpass(one, rate) for one in resampled]
    samples = [spectrogram.read(path, spec) for path in clips]
    shown = [one[slice(*spectrogram.shown(one, spec))] for one in samples]
    pixels = [spectrogram.render(one, spec) for one in samples]
    contents = [png.encode(one, spec, "clip") for one in pixels]
    with tempfile.TemporaryDirectory() as name:
        places = (Path(name) / f"{number}.png" for number in numbers())
        place, recipe = Path(name) / "a.png", Recipe(Path(name), spec, AugmentSettings(), 60.0, "benchmark")
        (Path(name) / IMAGES).mkdir()
        found = {
            "checksum of the file": milliseconds(content_mark, clips, rounds),
            "decode": milliseconds(lambda path: recording._decode(path, "", None), clips, rounds),
            "check values": milliseconds(lambda one: recording.check_values(one[0], ""), decoded, rounds),
            "resample": milliseconds(lambda one: soxr.resample(one[0], one[1], rate, quality="HQ"), decoded, rounds),
            "high-pass": milliseconds(lambda one: highpass(one, rate), resampled, rounds),
            "find sound": milliseconds(lambda one: (recording.is_audible(one, rate), active(one, rate)), clean, rounds),
            "trim": milliseconds(
                lambda one: recording.trim_bounds(one, sample_rate=rate, top_db=spec.trim_db or 30.0), clean, rounds
            ),
            "log-mel": milliseconds(lambda one: frontend.log_mel(one, spec), shown, rounds),
            "render (with log-mel)": milliseconds(lambda one: spectrogram.render(one, spec), samples, rounds),
            "encode": milliseconds(lambda one: png.encode(one, spec, "clip"), pixels, rounds),
            "write a new file": milliseconds(lambda one: write_bytes(next(places), one), contents, rounds),
            "of it, overwrite a file": milliseconds(place.write_bytes, contents, rounds),
            "all": milliseconds(
                lambda path: render_clips([Job(f"{path.parent.name}_{path.stem}", str(path), 0)], recipe), clips, 1
            ),
        }
        raw = milliseconds(lambda path: path.read_bytes(), clips, rounds)
    matrix = np.random.default_rng(0).random((1024, 1024), np.float32)
    peak = 2 * 1024**3 / milliseconds(lambda _: matrix @ matrix, [None] * 5, rounds) / 1e6
    frames = np.zeros((spec.n_fft, spec.width), np.float32)
    fft_flops = spec.width * 2.5 * spec.n_fft * np.log2(spec.n_fft)
    mel_flops = 2 * spec.width * int((spec.mel_filters > 0).sum())
    rows = np.diff(pixels[0], axis=0, prepend=np.uint8(0)).tobytes()
    return {
        "milliseconds_a_clip": found,
        "limits": {
            "bytes of a clip": round(statistics.mean(path.stat().st_size for path in clips)),
            "reading them, ms": raw,
            "peak of a matrix product, GFLOP/s, one thread": round(peak, 1),
            "FFT arithmetic at that peak, ms": round(fft_flops / peak / 1e6, 4),
            "FFT as it is, ms": milliseconds(lambda _: scipy.fft.rfft(frames, axis=0), [None] * 5, rounds),
            "mel arithmetic at that peak, ms": round(mel_flops / peak / 1e6, 4),
            "deflate, ms": milliseconds(lambda _: isal_zlib.compress(rows, 1), [None] * 5, rounds),
            "resample at medium quality, ms": milliseconds(
                lambda one: soxr.resample(one[0], one[1], rate, quality="MQ"), decoded, rounds
            ),
        },
    }


def altered(how: Augmentation, samples: recording.Waveform) -> recording.Waveform:
    """Return an augmented copy."""
    return augment.apply(samples, 16_000, how)


def stretch(clips: list[Path], rounds: int) -> dict[str, object]:
    """Time the augmentations of copies, and python-stretch (Signalsmith's) if it is installed."""
    samples = [recording.read(path, sample_rate=16_000, trim_db=30.0) for path in clips]
    found = {
        name: milliseconds(partial(altered, Augmentation({name: value})), samples, rounds)
        for name, value in (("stretch_rate", 1.1), ("pitch_semitones", 1.5), ("speed_rate", 1.05), ("snr_db", 20.0))
    }
    try:
        from python_stretch import Signalsmith
    except ImportError:
        return {"milliseconds_a_clip": found}

    def signalsmith(one: np.ndarray, *, rate: float = 1.0, semitones: float = 0.0) -> np.ndarray:
        stretcher = Signalsmith.Stretch()
        stretcher.preset(1, 16_000)
        stretcher.timeFactor = rate
        stretcher.setTransposeSemitones(semitones)
        stretched: np.ndarray = stretcher.process(one[None])
        return stretched

    found["Signalsmith, stretch"] = milliseconds(lambda one: signalsmith(one, rate=1.1), samples, rounds)
    found["Signalsmith, pitch"] = milliseconds(lambda one: signalsmith(one, semitones=1.5), samples, rounds)
    return {"milliseconds_a_clip": found}


def short_clips(clips: list[Path], count: int, folder: Path) -> None:
    """Write `count` recordings of half a second, all different."""
    pieces = [recording.read(path, sample_rate=16_000, trim_db=30.0)[:8000] for path in clips]
    (folder / "speech").mkdir(parents=True)
    for number in range(count):
        samples = (pieces[number % len(pieces)] * 32767).astype(np.int16)
        samples[:8] = [number >> 4 * digit & 15 for digit in range(8)]  # too quiet to affect trimming
        content = io.BytesIO()
        soundfile.write(content, samples, 16_000, format="WAV", subtype="PCM_16")
        (folder / "speech" / f"{number:06}.wav").write_bytes(content.getvalue())


def family(process: psutil.Process) -> Iterator[float]:
    """Yield the memory of a process and of each of its descendants, in MiB."""
    for one in [process, *process.children(recursive=True)]:
        try:
            yield one.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue


def grow(clips: list[Path], counts: list[int]) -> list[dict[str, float]]:
    """Run the verb on many clips; return time, clips per second, and peak memory with its processes."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            short_clips(clips, count, Path(name) / "clips")
            arguments = ["--corpus", "folder", "--source", f"{name}/clips", "--out", f"{name}/images", "--workers", "2"]
            started, most, largest = time.perf_counter(), 0.0, 0.0
            child = subprocess.Popen(
                [sys.executable, "-m", "spectro", "render", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            watched = psutil.Process(child.pid)
            while child.poll() is None:
                memory = list(family(watched))
                most, largest = max(most, sum(memory)), max(largest, *memory[1:] or [0.0])
                time.sleep(0.2)
            seconds = time.perf_counter() - started
            assert child.returncode == 0
            rows.append(
                {
                    "clips": count,
                    "seconds": round(seconds, 1),
                    "clips_a_second": round(count / seconds, 1),
                    "peak_mib": round(most),
                    "peak_mib_of_a_worker": round(largest),
                }
            )
    return rows


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of recordings")
    parser.add_argument("--clips", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for temporary pictures; default: the system's")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--spec", choices=SPECS, help="spec of the stages, instead of the one that all methods share")
    parser.add_argument("--stretch", action="store_true")
    parser.add_argument("--grow", type=int, nargs="+", metavar="CLIPS")
    given = parser.parse_args()
    tempfile.tempdir = given.out and str(given.out)
    clips = spread(parser, given.source, given.clips)
    if given.grow:
        found: object = grow(clips, given.grow)
    elif given.stages:
        found = stages(clips[:100], given.rounds, SPECS[given.spec] if given.spec else SPEC)
    elif given.stretch:
        found = stretch(clips[:50], given.rounds)
    else:
        found = compare(clips, given.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
