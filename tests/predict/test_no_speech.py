"""Speech detection from the input of the last layer: in rows, timelines and predictions, the same with every engine."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
import soundfile

from spectro.engines.base import Scores
from spectro.errors import CheckpointError, PredictionError
from spectro.model import checkpoint as checkpoints
from spectro.model.metadata import SpeechDetector
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.formats import Summary, audacity, webvtt
from spectro.predict.timeline.windows import WindowSettings
from spectro.rendering.index import read_index
from spectro.verbs.predict import PredictSettings, run
from tests.conftest import RATE, World, WriteWav, voice


def _noise(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's checkpoint, with a detector that separates its clips from white noise along the line of means."""
    folder = tmp_path_factory.mktemp("taught")
    plain = Predictor(world.trained, engine="torch")
    index, _spec = read_index(world.images)
    clips = [plain.render(path) for path in index["path"].drop_duplicates()]
    noise = [plain.render(_written(folder, number)) for number in range(3)]
    speech, other = (plain.scores(some).embeddings.mean(axis=0) for some in (clips, noise))
    weight = 20 * (speech - other) / np.square(speech - other).sum()
    detector = SpeechDetector(weight=tuple(map(float, weight)), bias=float(-weight @ (speech + other) / 2))
    about = msgspec.structs.replace(world.trained.about, speech=detector)
    checkpoints.save(replace(world.trained, about=about), folder / "checkpoint")
    return folder / "checkpoint"


def _written(folder: Path, number: int) -> Path:
    path = folder / f"noise{number}.wav"
    soundfile.write(path, np.roll(_noise(), 1000 * number), RATE)
    return path


def test_noise_is_labelled_no_speech_and_speech_predictions_are_unchanged(
    world: World, folder: Path, wav: WriteWav
) -> None:
    taught, plain = Predictor(folder, engine="torch"), Predictor(world.checkpoint, engine="torch")
    noise, clip = wav("noise.wav", _noise()), world.corpus / "speaker01/speaker01_calm_sentence0_take0.wav"
    found = taught.predict_wav(noise)
    assert found.label == "no speech" and found.speech is not None
    assert found.confidence == pytest.approx(1 - found.speech) and found.confidence > 0.5
    assert found.probabilities == plain.predict_wav(noise).probabilities
    spoken = taught.predict_wav(clip)
    assert spoken.speech is not None and spoken.speech > 0.5
    assert replace(spoken, speech=None) == plain.predict_wav(clip)
    assert Predictor(folder, engine="torch", min_speech=0.0).predict_wav(noise).label in taught.labels
    with pytest.raises(PredictionError, match=r"min_speech is 2"):
        Predictor(folder, min_speech=2.0)


def test_an_onnx_export_detects_no_speech_like_the_checkpoint(folder: Path, wav: WriteWav, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from spectro.engines.export import export, synthetic

    spec = checkpoints.load(folder).about.spec
    export(folder, tmp_path / "export", list(islice(synthetic(spec), 4)), ir=False, replace=False)
    path = wav("noise.wav", _noise())
    one, other = (Predictor(place, engine=name).predict_wav(path) for place, name in _pairs(folder, tmp_path))
    assert one.label == other.label == "no speech"
    assert one.speech == pytest.approx(other.speech, abs=1e-3)


def _pairs(folder: Path, tmp_path: Path) -> list:
    return [(folder, "torch"), (tmp_path / "export", "onnx")]


def test_prediction_rows_include_the_speech_probability(folder: Path, wav: WriteWav, tmp_path: Path) -> None:
    wav("in/noise.wav", _noise())
    wav("in/voice.wav")
    (tmp_path / "in" / "text.wav").write_text("no recording")
    settings = PredictSettings(
        inputs=[str(tmp_path / "in")], checkpoint=folder, out=tmp_path / "out.csv", engine="torch"
    )
    assert run(settings) == 1
    rows = pd.read_csv(tmp_path / "out.csv").set_index(pd.Index(["noise", "text", "voice"]))
    assert list(rows)[:6] == ["path", "start_s", "end_s", "label", "confidence", "p_speech"]
    assert rows.loc["noise", "label"] == "no speech" and rows.loc["noise", "p_speech"] < 0.5
    assert np.isnan(rows.loc["text", "p_speech"]) and rows.loc["voice", "p_speech"] >= 0


def test_a_timeline_marks_no_speech_and_audacity_and_webvtt_tracks_omit_it(
    world: World, folder: Path, wav: WriteWav
) -> None:
    clip, _rate = soundfile.read(world.corpus / "speaker01/speaker01_calm_sentence0_take0.wav", dtype="float32")
    path = wav("long.wav", np.concatenate([_noise(4), np.zeros(2 * RATE, np.float32), clip]))
    segments = list(Predictor(folder, engine="torch").timeline(path, WindowSettings(smooth_s=0)))
    assert segments[0].label == "no speech" and segments[0].speech is not None and segments[0].speech < 0.5
    spoken = [one for one in segments if one.label in world.trained.about.labels]
    assert spoken and all(one.start_s >= 5 for one in spoken)
    summary = Summary("long.wav")
    for one in segments:
        summary.add(one)
    content = summary.content()
    assert content["shares"]["no speech"] > 0.5
    assert {one["label"] for one in content["strongest"]} <= set(world.trained.about.labels)
    assert "no speech" not in audacity(segments) + webvtt(segments) and audacity(segments)


def test_a_checkpoint_without_a_speech_detector_labels_noise_as_an_emotion(world: World, wav: WriteWav) -> None:
    found = Predictor(world.checkpoint, engine="torch").predict_wav(wav("noise.wav", _noise()))
    assert found.speech is None and found.label in world.trained.about.labels


def test_an_invalid_speech_detector_is_rejected_on_loading(folder: Path, tmp_path: Path) -> None:
    changes = (
        ({"weight": [1.0], "bias": 0.0}, "speech.weight does not hold 256 numbers"),
        ({"weight": [1.0]}, "speech: Object missing required field 'bias'"),
        ({"weight": "x", "bias": 0.0}, "speech.weight: Expected 'array', got 'str'"),
    )
    for place, (change, message) in enumerate(changes):
        broken = tmp_path / str(place)
        shutil.copytree(folder, broken)
        about = json.loads((broken / "spectro.json").read_text())
        (broken / "spectro.json").write_text(json.dumps(about | {"speech": change}))
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(broken)


def test_listen_labels_noise_as_no_speech(folder: Path) -> None:
    from spectro.verbs.listen import ListenSettings, listen

    predictor = Predictor(folder, engine="torch")
    blocks = [np.concatenate([_noise(2), voice(2.0)])[:, None]]
    rows = list(listen(predictor, blocks, ListenSettings(source="stdin", rate=RATE, every_s=1.0)))
    assert rows[1].label == "no speech" and rows[1].speech is not None


def test_close_calls_of_the_detector_are_computed_in_float32(
    folder: Path, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Predictor(folder, engine="torch")
    picture = exact.render(wav("noise.wav", _noise()))
    speech = exact.scores([picture]).speech
    assert speech is not None
    for distance, same in ((0.0, True), (0.2, False)):
        rough = Predictor(folder, engine="torch", precision="bfloat16", min_speech=float(speech[0]) + distance)
        scores = rough.engine.scores

        def off(pictures: np.ndarray, scores: Callable[[np.ndarray], Scores] = scores) -> Scores:
            found = scores(pictures)
            found.embeddings[:] *= 1.0001
            return found

        monkeypatch.setattr(rough.engine, "scores", off)
        found = rough.scores([picture]).speech
        assert found is not None and bool(found[0] == speech[0]) is same
