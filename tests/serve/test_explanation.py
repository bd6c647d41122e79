import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import requests

from spectro.errors import CheckpointError
from spectro.picture.frontend import band_of
from spectro.picture.spec import SpectrogramSpec
from spectro.picture.spectrogram import render
from spectro.predict.explain import explain
from spectro.predict.predictor import Predictor
from spectro.serve.explanation import columns
from tests.conftest import RATE, SMALL, World, WriteWav, voice
from tests.serve.conftest import Running


def ask(service: Running, path: Path, **query: object) -> requests.Response:
    files = {"file": (path.name, path.read_bytes())}
    return requests.post(service.url + "/v1/explain", files=files, params=query, timeout=60)  # type: ignore[arg-type]


def pixels(png: str) -> np.ndarray:
    image = PIL.Image.open(io.BytesIO(base64.b64decode(png)))
    assert image.mode == "L"
    return np.asarray(image)


def test_an_explanation_equals_that_of_the_python_api(service: Running, world: World, wav: WriteWav) -> None:
    path, predictor = wav(samples=voice(1.2)), Predictor(world.checkpoint, device="cpu")
    answer, expected = ask(service, path, label="happy").json(), explain(predictor, path, label="happy")
    assert answer["label"] == expected.prediction.label
    assert answer["probabilities"] == pytest.approx(expected.prediction.probabilities, abs=1e-6)
    assert answer["about"] == "happy"
    np.testing.assert_array_equal(pixels(answer["picture"]), expected.picture)
    np.testing.assert_allclose(pixels(answer["heat"]) / 255, expected.heat, atol=0.003)
    assert (answer["height"], answer["width"]) == SMALL.shape
    assert answer["start_s"] == pytest.approx(expected.start_s)
    assert answer["step_s"] == SMALL.hop_length / SMALL.sample_rate
    for mark in answer["frequencies"]:
        assert mark["row"] == pytest.approx(SMALL.height - 1 - band_of(mark["hz"], SMALL), abs=0.001)
        assert 0 <= mark["row"] < SMALL.height
    assert len(answer["frequencies"]) > 3


def test_a_short_recording_that_does_not_tell_its_length_is_explained(service: Running, wav: WriteWav) -> None:
    path = wav("piped.flac", voice(1.0))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the header's number of samples, and its checksum: unknown
    content[22:42] = bytes(20)
    path.write_bytes(content)
    assert ask(service, path).status_code == 200


def test_columns_of_an_explanation_exclude_padding(service: Running, wav: WriteWav) -> None:
    answer = ask(service, wav(samples=voice(0.8))).json()
    first, last = answer["columns"]
    begin_s, end_s = (answer["start_s"] + place * answer["step_s"] for place in (first, last))
    assert begin_s == pytest.approx(0, abs=0.05)
    assert end_s == pytest.approx(0.8, abs=0.05)
    assert not pixels(answer["picture"])[:, :first].any()


@pytest.mark.parametrize("channels", ["gray", "colormap", "deltas", "windows"])
def test_columns_exclude_padding_in_every_kind_of_picture(channels: str) -> None:
    spec = SpectrogramSpec(n_fft=1024, win_length=400, hop_length=320, height=40, width=80, channels=channels)  # type: ignore[arg-type]
    first, last = columns(render(voice(0.8), spec), spec)
    assert last - first + 1 == pytest.approx(0.8 * RATE / spec.hop_length, abs=2)
    assert first == pytest.approx(spec.width - 1 - last, abs=1)


def test_an_excerpt_is_explained_with_times_of_the_whole_recording(service: Running, wav: WriteWav) -> None:
    whole = np.concatenate([voice(3.0, pitch=240), np.zeros(RATE, np.float32), voice(1.2), voice(70.0, pitch=300)])
    path, alone = wav("long.wav", whole), wav("alone.wav", voice(1.2))
    assert ask(service, path).status_code == 413  # longer than the limit for a clip
    answer, expected = ask(service, path, start_s=4.0, end_s=5.2).json(), ask(service, alone).json()
    assert answer["start_s"] == pytest.approx(expected["start_s"] + 4.0, abs=1e-3)
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=0.01)
    assert answer["columns"] == expected["columns"]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"label": "hungry"}, 422, "choose from neutral, calm, happy"),
        ({"start_s": 9}, 422, "clip.wav: ends after 1.0 s"),
        ({"start_s": 0.5, "end_s": 0.5}, 422, "clip.wav: end_s (0.5 s) must be later than start_s (0.5 s)"),
        ({"start_s": "nan"}, 422, "start_s"),
        ({"model": "other"}, 404, "there is no model"),
    ],
)
def test_an_invalid_explanation_request_gets_an_error_message(
    service: Running, wav: WriteWav, query: dict[str, object], status: int, words: str
) -> None:
    answer = ask(service, wav(), **query)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_an_explanation_without_the_checkpoint_gets_501(
    service: Running, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_self: Predictor) -> None:
        raise CheckpointError("its checkpoint is missing")

    monkeypatch.setattr(Predictor, "torch_engine", property(missing))
    answer = ask(service, wav())
    assert answer.status_code == 501
    assert answer.json()["detail"] == ("checkpoint cannot be explained: its checkpoint is missing")
