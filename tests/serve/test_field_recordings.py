"""Recordings from pipes, crashed recorders and miswired channels, sent to the service."""

import io

import numpy as np
import pytest
import requests

from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import SILENCE
from tests.conftest import RATE, World
from tests.predict.test_field_recordings import SAME, _wav
from tests.serve.conftest import Running


def _post(service: Running, path: str, content: bytes, name: str = "case.wav") -> requests.Response:
    return requests.post(service.url + path, files={"file": (name, content)}, timeout=60)


@pytest.mark.parametrize("case", SAME)
def test_the_service_predicts_the_same_as_the_python_api(service: Running, world: World, case: str) -> None:
    content = SAME[case]()
    predictor = Predictor(world.checkpoint, device="cpu")
    clip = _post(service, "/v1/predict/wav", content).json()
    expected = predictor.predict_wav(io.BytesIO(content))
    assert clip["label"] == expected.label
    assert clip["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    segments = _post(service, "/v1/timeline", content).json()["segments"]
    assert [(one["start_s"], one["label"]) for one in segments] == [
        (one.start_s, one.label) for one in predictor.timeline(io.BytesIO(content))
    ]


def test_a_dc_offset_counts_as_silence_and_a_web_page_gets_415(service: Running) -> None:
    silence = _wav(0.02 + np.random.default_rng(0).normal(0, 1e-4, 5 * RATE))
    answer = _post(service, "/v1/predict/wav", silence)
    assert (answer.status_code, answer.json()["detail"].startswith("case.wav: is silent")) == (422, True)
    segments = _post(service, "/v1/timeline", silence).json()["segments"]
    assert [one["label"] for one in segments] == [SILENCE]
    answer = _post(service, "/v1/predict/wav", b"<!DOCTYPE html><html>404</html>" * 50, "page.mp3")
    assert answer.status_code == 415
    assert "it is text such as a web page" in answer.json()["detail"]
