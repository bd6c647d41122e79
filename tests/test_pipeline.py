"""The whole pipeline on the embedded corpus: the network must generalise to speakers it was not trained on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectro.corpora.datasets import synthetic
from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.picture.spec import SpectrogramSpec
from spectro.predict.predictor import Predictor
from spectro.rendering.index import INDEX
from spectro.rendering.render import RenderSettings, render
from spectro.train.finetune import finetune
from spectro.train.module import TrainingSettings
from spectro.train.settings import FinetuneSettings
from tests.conftest import REPOSITORY

SPEC = SpectrogramSpec(n_fft=1024, hop_length=400, height=64, width=112)
CHANCE = 1 / len(synthetic.PROSODY)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendering of the whole embedded corpus, in pictures of a quarter of the usual size."""
    root = tmp_path_factory.mktemp("pipeline")
    synthetic.write(root / "corpus")
    out = root / "images"
    render(RenderSettings(corpus="synthetic", source=root / "corpus", out=out, copies=0, spec=SPEC))
    return out


def _train_and_measure(images: Path, out: Path) -> float:
    """Fine-tune from the shipped checkpoint, and return the UAR on held-out speakers."""
    settings = FinetuneSettings(
        index=images,
        weights=str(REPOSITORY / "checkpoints/mobilenet-ravdess"),
        out=out,
        train=TrainingSettings(epochs=2, mixup=0.0),
        accelerator="cpu",
    )
    finetune(settings)
    report = evaluate(EvaluateSettings(checkpoint=out, index=images, out=out / "report", rounds=100, device="cpu"))
    assert report["speakers_heard_in_training"] == []
    return float(report["uar"]["value"])


def _rewrite_index(images: Path, change: Callable[[pd.DataFrame], pd.DataFrame], out: Path) -> Path:
    """Write a rendering with the same pictures and a changed index; returns its folder."""
    out.mkdir()
    (out / "images").symlink_to(images / "images")
    (out / "spec.json").write_bytes((images / "spec.json").read_bytes())
    change(pd.read_parquet(images / INDEX)).to_parquet(out / INDEX, index=False)
    return out


def _shuffle_labels(index: pd.DataFrame) -> pd.DataFrame:
    """Give each clip, with its copies, the emotion of a random clip."""
    clips = index.drop_duplicates("clip_id")
    shuffled = np.random.default_rng(0).permutation(clips["emotion"])
    return index.assign(emotion=index["clip_id"].map(dict(zip(clips["clip_id"], shuffled, strict=True))))


def test_emotions_of_unseen_speakers_are_recognised_far_above_chance(images: Path, tmp_path: Path) -> None:
    assert _train_and_measure(images, tmp_path / "checkpoint") > 3 * CHANCE
    predictor = Predictor(tmp_path / "checkpoint", device="cpu")
    speakers = predictor.checkpoint.split.speakers["test"]
    folder = images.parent / "corpus" / f"speaker{int(speakers[0]):02}"
    rows = list(predictor.predict_folder(folder))
    right = [row.label == Path(row.path).name.split("_")[1] for row in rows]
    assert len(rows) == 48
    assert np.mean(right) > 2 * CHANCE


@pytest.mark.slow
def test_training_on_shuffled_labels_stays_near_chance(images: Path, tmp_path: Path) -> None:
    """If this were far above chance, the measurement above would be worthless."""
    shuffled = _rewrite_index(images, _shuffle_labels, tmp_path / "shuffled")
    assert _train_and_measure(shuffled, tmp_path / "checkpoint") < 2 * CHANCE
