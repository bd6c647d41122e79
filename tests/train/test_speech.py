"""The speech detector on the input of a trained network's last layer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spectro.errors import TrainingError
from spectro.model import checkpoint as checkpoints
from spectro.predict.predictor import Predictor
from spectro.rendering.render import RenderSettings, render
from spectro.train.data import PictureDataModule
from spectro.train.finetune import finetune
from spectro.train.speech import learn
from tests.conftest import RATE, SMALL, World, finetune_settings


def _sounds(root: Path, *sources: str) -> Path:
    """Sounds without speech from the given sources: noise, tones, clicks."""
    generator, time = np.random.default_rng(0), np.arange(RATE) / RATE
    makers = {
        "noise": lambda _number: generator.normal(0, 0.1, RATE),
        "tones": lambda number: 0.3 * np.sin(2 * np.pi * (300 + 150 * number) * time),
        "clicks": lambda number: 0.9 * (generator.random(RATE) < 0.001 * (1 + number)),
    }
    for source in sources:
        (root / source).mkdir(parents=True)
        for number in range(8):
            soundfile.write(root / source / f"{number}.wav", makers[source](number), RATE)
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sounds")
    source = _sounds(root / "sounds", "noise", "tones", "clicks")
    render(RenderSettings(corpus="folder", source=source, out=root / "images", spec=SMALL, workers=1))
    return root / "images"


def test_a_speech_detector_is_added_to_a_finished_run_and_reported(world: World, sounds: Path, tmp_path: Path) -> None:
    settings = finetune_settings(world.images, tmp_path / "run")
    before = finetune(settings)
    assert before.about.speech is None and "No speech" not in (tmp_path / "run" / "card.md").read_text()
    after = finetune(replace(settings, sounds=[sounds]))
    assert after.about.speech is not None and len(after.about.speech.weight) == after.net.features
    told = json.loads((tmp_path / "run" / "spectro.json").read_text())["sounds"]
    assert {name: one["sounds"] for name, one in told["sources"].items()} == {"clicks": 8, "noise": 8, "tones": 8}
    assert set(told["refused"]) == {"train", "valid", "test"}
    card = (tmp_path / "run" / "card.md").read_text()
    assert "| noise | 8 |" in card and "of the test speakers' clips" in card
    predictor = Predictor(tmp_path / "run", engine="torch")
    rows = list(predictor.predict_folder(world.corpus, sounds.parent / "sounds"))
    said = {kind: [one for one in rows if kind in one.path] for kind in ("speaker", "noise", "tones", "clicks")}
    for kind in ("noise", "tones", "clicks"):
        assert np.mean([one.label == "no speech" for one in said[kind]]) > 0.8
    assert np.mean([one.label == "no speech" for one in said["speaker"]]) < 0.2
    assert checkpoints.load(tmp_path / "run").about.speech == after.about.speech


def test_the_detector_bias_rejects_few_validation_clips(world: World, sounds: Path) -> None:
    data = PictureDataModule(world.images, batch_size=8)
    found, told = learn(world.trained.net, data, [sounds], 0)
    assert told.refused["valid"] <= 1 / len(data.rows["valid"]) + 1e-4  # rounded
    assert all(np.isfinite([*found.weight, found.bias]))


def test_sounds_with_another_spec_or_a_single_source_are_refused(world: World, tmp_path: Path) -> None:
    source = _sounds(tmp_path / "sounds", "noise")
    for name, spec, message in (
        ("other", replace(SMALL, low=-3.0), "render the sounds with the --spec of the clips"),
        ("one", SMALL, "holds sounds of one source"),
    ):
        render(RenderSettings(corpus="folder", source=source, out=tmp_path / name, spec=spec, workers=1))
        settings = finetune_settings(world.images, tmp_path / f"run-{name}", sounds=[tmp_path / name])
        with pytest.raises(TrainingError, match=message):
            finetune(settings)
