import io
from pathlib import Path

import numpy as np
import pytest
import torch

import spectro
from spectro.audio import recording
from spectro.errors import AudioError, CheckpointError, ImageError
from spectro.model import locate
from spectro.picture import spectrogram
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_index
from tests.conftest import REPOSITORY, World, WriteWav


@pytest.fixture(scope="module")
def predictor(world: World) -> Predictor:
    return Predictor(world.checkpoint, device="cpu")


def test_a_recording_and_its_rendered_picture_have_the_same_probabilities(world: World, predictor: Predictor) -> None:
    index, _ = read_index(world.images)
    for row in index[index["copy"] == 0].sample(10, random_state=1).itertuples():
        answer = predictor.predict_wav(str(row.path))
        seen = predictor.predict_image(world.images / str(row.image))
        assert answer.label == seen.label
        for label, probability in answer.probabilities.items():
            assert seen.probabilities[label] == pytest.approx(probability, abs=1e-5)


def test_probabilities_are_the_networks_softmax_at_the_checkpoints_temperature(
    world: World, predictor: Predictor, wav: WriteWav
) -> None:
    path = wav()
    spec = world.trained.about.spec
    pixels = spectrogram.render(recording.read(path, sample_rate=spec.sample_rate, trim_db=spec.trim_db), spec)
    with torch.inference_mode():
        logits = world.trained.net(torch.from_numpy(pixels.copy())[None, None])[0].double()
    expected = torch.softmax(logits / world.trained.about.temperature, 0)
    found = predictor.predict_wav(path)
    np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-6)
    assert tuple(found.probabilities) == predictor.labels == world.trained.about.labels
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.confidence == max(found.probabilities.values()) == found.probabilities[found.label]


def test_file_objects_are_classified_like_paths(world: World, predictor: Predictor, wav: WriteWav) -> None:
    path = wav()
    assert predictor.predict_wav(io.BytesIO(path.read_bytes())) == predictor.predict_wav(path)
    picture = next((world.images / "images").glob("*_0.png"))
    assert predictor.predict_image(io.BytesIO(picture.read_bytes())) == predictor.predict_image(picture)


def test_an_unreadable_file_raises_an_error_that_names_it(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "text.wav"
    path.write_text("text")
    with pytest.raises(AudioError, match=r"text\.wav"):
        predictor.predict_wav(path)
    with pytest.raises(ImageError, match=r"text\.wav"):
        predictor.predict_image(path)


def test_batching_does_not_change_predictions(world: World, predictor: Predictor) -> None:
    index, _ = read_index(world.images)
    paths = index["path"].drop_duplicates().tolist()[:7]
    pictures = [predictor.render(path) for path in paths]
    alone = [predictor.predict_pixels([picture])[0] for picture in pictures]
    for one, together in zip(alone, predictor.predict_pixels(pictures), strict=True):
        np.testing.assert_allclose(list(one.probabilities.values()), list(together.probabilities.values()), atol=1e-5)
    assert predictor.predict_pixels([]) == []


def test_the_default_checkpoint_ships_with_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPECTRO_CHECKPOINT", raising=False)
    monkeypatch.chdir(tmp_path)
    shipped = spectro.load()
    assert shipped.labels == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    assert (REPOSITORY / "checkpoints/yamnet-voices/model.safetensors").stat().st_size < 12 * 2**20
    assert "CC BY-NC-SA 4.0" in (REPOSITORY / "checkpoints/yamnet-voices/card.md").read_text()


def test_an_environment_variable_sets_the_default_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECTRO_CHECKPOINT", str(world.checkpoint))
    assert spectro.load(device="cpu").labels == world.trained.about.labels
    monkeypatch.setenv("SPECTRO_CHECKPOINT", str(tmp_path))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        spectro.load()


def test_a_missing_default_checkpoint_raises_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SPECTRO_CHECKPOINT", raising=False)
    monkeypatch.setattr(locate, "DEFAULT_CHECKPOINT", "not-there")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="set SPECTRO_CHECKPOINT"):
        spectro.load()


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in spectro.__all__:
        assert getattr(spectro, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        spectro.nope  # noqa: B018
