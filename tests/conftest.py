"""Small real fixtures that the tests share: recordings, a rendered corpus, a trained checkpoint.

Heavy packages are imported where they are used. pytest-xdist's controller, which runs no test, and the tests of `audio`
and `picture` do not need them.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from spectro.picture.spec import SpectrogramSpec

if TYPE_CHECKING:
    from spectro.model.checkpoint import Checkpoint
    from spectro.train.settings import FinetuneSettings

os.environ.setdefault("SPECTRO_ENGINE", "torch")  # exporting every test's network would be slow

for _name, _action in {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}.items():
    # nohup and a shell's & make a command ignore these signals; the processes that tests start inherit that
    if (_signal := getattr(signal, _name, None)) is not None and signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _action)

RATE = 16_000
SMALL = SpectrogramSpec(n_fft=512, win_length=400, hop_length=320, height=40, width=80)
REPOSITORY = Path(__file__).resolve().parents[1]

WriteWav = Callable[..., Path]


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, so that collecting after each test costs next to nothing."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Undo the freeze, so that pytest's own collection finds whatever stayed open for the whole session."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing_open() -> Iterator[None]:
    """Report at a module's last test what its own fixtures left open; this fixture is set up first, so it ends last."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _test_leaves_nothing_open() -> Iterator[None]:
    """Report a socket, loop, file or process that a test left open at that test.

    Warnings are errors here, and a ResourceWarning is raised when an object is collected, whichever test is running.
    A test's random numbers do not depend on earlier tests, either.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
    known = len(sys.modules)
    yield
    gc.collect()
    if len(sys.modules) > known:
        gc.freeze()


def voice(seconds: float = 1.0, rate: int = RATE, pitch: float = 150.0) -> np.ndarray:
    """Return a voice-like sound: harmonics with an envelope, so that it is neither silent nor stationary."""
    time = np.arange(round(seconds * rate)) / rate
    harmonics = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    return (0.1 * harmonics * (1.2 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def pitch_of(samples: np.ndarray, rate: int = RATE) -> float:
    """Return the pitch of a voice, in Hz: the median over frames of the first high peak of the autocorrelation."""
    length, found = rate // 20, []
    lags = np.arange(rate // 600, rate // 70)
    for start in range(0, len(samples) - 2 * length, length):
        frame = samples[start : start + 2 * length].astype(np.float64)
        frame -= frame.mean()
        if frame.std() < 0.3 * samples.std():
            continue
        spectrum = np.abs(np.fft.rfft(frame, 4 * length)) ** 2
        correlation = np.fft.irfft(spectrum)[: len(frame)] / np.arange(len(frame), 0, -1)
        peaks = lags[correlation[lags] > 0.9 * correlation[lags].max()]
        first = peaks[: np.argmax(np.diff(peaks, append=peaks[-1] + 2) > 1) + 1]
        found.append(rate / first[correlation[first].argmax()])
    return float(np.median(found))


@pytest.fixture
def wav(tmp_path: Path) -> WriteWav:
    """Return a function that writes a recording into the test's folder."""

    def write(name: str = "clip.wav", samples: np.ndarray | None = None, rate: int = RATE, **options: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, voice(rate=rate) if samples is None else samples, rate, **options)
        return path

    return write


def write_corpus(root: Path, speakers: int = 8, emotions: tuple[str, ...] = ("calm", "happy", "angry")) -> Path:
    """Write a part of the synthetic corpus, with its real file names; return its folder."""
    from spectro.corpora.datasets import synthetic

    for speaker in range(1, speakers + 1):
        for emotion in emotions:
            for sentence in range(2):
                name = f"speaker{speaker:02}/speaker{speaker:02}_{emotion}_sentence{sentence}_take0.wav"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                samples = synthetic.synthesise(speaker, emotion, sentence, 0)
                soundfile.write(root / name, samples, synthetic.SAMPLE_RATE, subtype="PCM_16")
    return root


@dataclass(frozen=True)
class World:
    """A corpus, its pictures, and a checkpoint trained on them for two epochs."""

    corpus: Path
    images: Path
    checkpoint: Path
    trained: "Checkpoint"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return one small world for all tests that only read it."""
    from spectro.rendering.render import RenderSettings, render
    from spectro.train.finetune import finetune

    root = tmp_path_factory.mktemp("world")
    corpus, images, checkpoint = write_corpus(root / "corpus"), root / "images", root / "checkpoint"
    render(RenderSettings(corpus="synthetic", source=corpus, out=images, copies=2, spec=SMALL, workers=1))
    trained = finetune(finetune_settings(images, checkpoint))
    return World(corpus, images, checkpoint, trained)


def finetune_settings(images: Path, out: Path, **changes: object) -> "FinetuneSettings":
    """Return settings for a run of a few seconds: a tiny network from random weights."""
    from spectro.train.module import TrainingSettings
    from spectro.train.settings import FinetuneSettings

    defaults: dict[str, object] = {
        "index": images,
        "backbone": "test_efficientnet",
        "weights": "none",
        "out": out,
        "batch_size": 8,
        "train": TrainingSettings(epochs=2),
        "precision": "32-true",
        "workers": 0,
        "accelerator": "cpu",
    }
    return FinetuneSettings(**(defaults | changes))  # type: ignore[arg-type]
