import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from starlette.exceptions import HTTPException

from spectro.engines.base import Scores
from spectro.errors import PredictionError
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import timeline
from spectro.serve.batching import Batcher
from spectro.serve.guard import Guard
from spectro.serve.limits import Limits
from tests.conftest import World, WriteWav, voice
from tests.serve.conftest import Running, Start


def post(
    running: Running, path: str, file: Path | bytes, name: str = "clip.wav", **options: object
) -> requests.Response:
    content = file if isinstance(file, bytes) else file.read_bytes()
    return requests.post(running.url + path, files={"file": (name, content)}, timeout=60, **options)  # type: ignore[arg-type]


def test_predictions_equal_those_of_the_python_api(service: Running, world: World) -> None:
    predictor = Predictor(world.checkpoint, device="cpu")
    paths = sorted(world.corpus.rglob("*.wav"))
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda path: post(service, "/v1/predict/wav", path), paths))
    for path, answer in zip(paths, answers, strict=True):
        expected = predictor.predict_wav(path)
        assert answer.status_code == 200
        content = answer.json()
        assert set(content) == {"label", "confidence", "probabilities"}
        assert content["label"] == expected.label
        assert content["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    picture = next((world.images / "images").glob("*_0.png"))
    content = post(service, "/v1/predict/image", picture).json()
    assert content["probabilities"] == pytest.approx(predictor.predict_image(picture).probabilities, abs=1e-5)


def test_prediction_options_set_margin_embedding_and_model(service: Running, wav: WriteWav, world: World) -> None:
    path = wav()
    assert post(service, "/v1/predict/wav", path, params={"min_margin": 1}).json()["label"] == "unsure"
    embedding = post(service, "/v1/predict/wav", path, params={"embedding": True}).json()["embedding"]
    expected = Predictor(world.checkpoint, device="cpu").predict_wav(path).embedding
    assert embedding == pytest.approx(expected.tolist(), abs=1e-4)
    other = post(service, "/v1/predict/wav", path, params={"model": "mobilenet-ravdess"}).json()
    assert "disgust" in other["probabilities"]


def test_a_timeline_equals_that_of_the_python_api(service: Running, wav: WriteWav, world: World) -> None:
    path = wav(samples=np.concatenate([voice(2.0), np.zeros(16_000), voice(3.0)]).astype(np.float32))
    content = post(service, "/v1/timeline", path).json()
    expected = list(timeline(Predictor(world.checkpoint, device="cpu"), path))
    assert [(one["start_s"], one["end_s"], one["label"]) for one in content["segments"]] == [
        (one.start_s, one.end_s, one.label) for one in expected
    ]
    assert content["summary"]["duration_s"] == pytest.approx(6, abs=0.01)
    assert content["summary"]["path"] == "clip.wav"


def test_the_service_describes_its_models_health_and_routes(service: Running, world: World) -> None:
    model = requests.get(service.url + "/v1/model", timeout=9).json()
    assert model["labels"] == list(world.trained.about.labels)
    assert model["models"] == ["checkpoint", "mobilenet-ravdess"]
    assert model["engine"].startswith("torch ")
    assert model["spec_fingerprint"] == world.trained.about.spec.fingerprint
    assert requests.get(service.url + "/healthz", timeout=9).json() == {"status": "ok"}
    paths = requests.get(service.url + "/openapi.json", timeout=9).json()["paths"]
    assert set(paths) == {
        "/v1/predict/wav", "/v1/predict/image", "/v1/explain", "/v1/timeline", "/v1/model", "/healthz", "/metrics",
    }  # fmt: skip


def test_bad_requests_get_a_4xx_status_and_an_error_message(service: Running, wav: WriteWav, world: World) -> None:
    clip, wrong = wav(), wav("silent.wav", np.zeros(16_000, np.float32))
    picture = next((world.images / "images").glob("*_0.png")).read_bytes()
    cases = [
        ("/v1/predict/wav", b"text", 415, "clip.wav: is not a recording"),
        ("/v1/predict/wav", clip.read_bytes()[:20], 415, "clip.wav: is not a recording"),
        ("/v1/predict/wav", wrong.read_bytes(), 422, "clip.wav: is silent"),
        ("/v1/predict/wav", wav("long.wav", voice(61.0)).read_bytes(), 413, "clip.wav: lasts 61.0 s"),
        ("/v1/predict/wav", b"", 415, "clip.wav"),
        ("/v1/predict/image", clip.read_bytes(), 415, "clip.wav: is not a PNG"),
        ("/v1/predict/image", picture[:100], 415, "clip.wav: is not a whole PNG"),
        ("/v1/predict/image?model=mobilenet-ravdess", picture, 422, "pixels; the spec says"),
        ("/v1/timeline", b"RIFF", 415, "clip.wav: is not a recording"),
        ("/v1/predict/wav?model=none", clip.read_bytes(), 404, "there is no model 'none'"),
        ("/v1/predict/wav?min_margin=7", clip.read_bytes(), 422, "min_margin is 7; it must be at most 1"),
    ]
    for path, content, status, detail in cases:
        answer = post(service, path, content)
        assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text
    url = service.url + "/v1/predict/wav"
    assert requests.post(url, timeout=9).status_code == 422
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert requests.post(url, data=b"no boundary", headers=kind, timeout=9).status_code == 400


def test_a_hostile_file_name_gets_an_ordinary_error(service: Running) -> None:
    for name in ("../../etc/passwd", "a\nb.wav", "<b>.wav", "\udcff.wav"):
        answer = post(service, "/v1/predict/wav", b"text", name=name.encode("utf-8", "replace").decode())
        assert answer.status_code == 415
        assert "is not a recording" in answer.json()["detail"]
    assert post(service, "/v1/predict/wav", b"text", name="x" * 5000).status_code == 400


def test_requests_need_an_api_key_except_for_the_health_check(start: Start, wav: WriteWav) -> None:
    path = wav()
    with start(keys=("first", "second")) as running:
        assert post(running, "/v1/predict/wav", path).status_code == 401
        assert post(running, "/v1/predict/wav", path, headers={"X-API-Key": "wrong"}).status_code == 401
        assert post(running, "/v1/predict/wav", path, headers={"X-API-Key": "second"}).status_code == 200
        assert post(running, "/v1/predict/wav", path, headers={"Authorization": "Bearer first"}).status_code == 200
        assert requests.get(running.url + "/metrics", timeout=9).status_code == 401
        assert requests.get(running.url + "/healthz", timeout=9).status_code == 200


def test_uploads_above_the_size_limit_are_refused(start: Start) -> None:
    with start(max_mb=0.1, max_timeline_mb=0.2) as running:
        assert post(running, "/v1/predict/wav", bytes(150_000)).status_code == 413
        assert post(running, "/v1/timeline", bytes(150_000)).status_code == 415
        assert post(running, "/v1/timeline", bytes(250_000)).status_code == 413

        def drip() -> object:
            for _ in range(40):
                yield bytes(10_000)

        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        url = running.url + "/v1/predict/wav"
        begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        unsaid = requests.post(url, data=iter([begin, *drip()]), headers=kind, timeout=9)  # type: ignore[call-overload]
        assert unsaid.status_code == 413


def test_requests_above_the_concurrency_limits_get_429_or_503(start: Start, wav: WriteWav) -> None:
    content = wav().read_bytes()
    for limits, status in (({"max_per_client": 1}, 429), ({"max_pending": 1}, 503)):
        with start(**limits) as running:
            with _open_upload(running):
                answer = post(running, "/v1/predict/wav", content)
                assert answer.status_code == status
                assert answer.headers["Retry-After"] == "1"
            running.until(lambda: running.pending() == 0)
            assert post(running, "/v1/predict/wav", content).status_code == 200


def test_stalled_uploads_time_out_and_do_not_block_other_requests(start: Start, wav: WriteWav) -> None:
    content = wav().read_bytes()
    with start(idle_s=1.0) as running:
        with ExitStack() as stack:
            held = [stack.enter_context(_open_upload(running)) for _ in range(30)]
            for _ in range(5):
                assert post(running, "/v1/predict/wav", content).status_code == 200
            assert b" 408 " in held[0].recv(4096)
        running.until(lambda: running.pending() == 0)


def _open_upload(running: Running) -> socket.socket:
    """Start an upload, and send nothing more."""
    connection = running.connected()
    connection.sendall(
        b"POST /v1/predict/wav HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 1000\r\n\r\n--x\r\n"
    )
    running.until(lambda: bool(running.pending()))
    return connection


def _send_upload(running: Running, path: str, content: bytes) -> socket.socket:
    """Send a whole upload; returns the connection without waiting for the answer."""
    request = requests.Request("POST", running.url + path, files={"file": ("a.wav", content)}).prepare()
    lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    assert isinstance(request.body, bytes)
    connection = running.connected()
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode() + request.body)
    return connection


def test_timelines_are_limited_and_cancelled_when_the_client_disconnects(
    start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wav(samples=np.tile(np.concatenate([voice(1.0), np.zeros(16_000)]), 60).astype(np.float32))
    calls: list[int] = []
    begun, go_on, original = threading.Event(), threading.Event(), Predictor.scores

    def slow(self: Predictor, pictures: list[np.ndarray]) -> Scores:
        calls.append(len(pictures))
        begun.set()
        assert go_on.wait(60)
        return original(self, pictures)

    monkeypatch.setattr(Predictor, "scores", slow)
    with start(max_timelines=1) as running:
        with _send_upload(running, "/v1/timeline", path.read_bytes()):
            assert begun.wait(60)
            assert post(running, "/v1/timeline", path).status_code == 503
        running.until(lambda: running.pending() == 0)
        go_on.set()
        assert post(running, "/v1/timeline", path).status_code == 200
        after_both = len(calls)
        assert post(running, "/v1/timeline", path).status_code == 200
        whole = len(calls) - after_both
        assert after_both - whole <= 2 < whole


def test_decoding_a_silent_recording_stops_when_the_client_disconnects(start: Start, wav: WriteWav) -> None:
    path = wav("silent.flac", np.zeros(48_000 * 600, np.int16), rate=48_000)
    with start() as running:
        with _send_upload(running, "/v1/timeline", path.read_bytes()):
            running.until(lambda: running.pending() == 1)
        running.until(lambda: running.pending() == 0)
        assert post(running, "/v1/timeline", path).status_code == 200


def test_a_form_with_a_second_file_or_an_option_is_refused(service: Running, wav: WriteWav) -> None:
    files = [("file", ("a.wav", wav().read_bytes()))] * 2
    assert requests.post(service.url + "/v1/predict/wav", files=files, timeout=60).status_code == 400
    answer = requests.post(service.url + "/v1/predict/wav", files=files[:1], data={"min_margin": "0.9"}, timeout=60)
    assert answer.status_code == 422
    assert "options are query parameters: ?min_margin=..." in answer.json()["detail"]


def test_a_model_that_fails_to_load_gets_503_and_others_still_answer(
    start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start() as running:
        monkeypatch.setitem(running.models._folders, "broken", Path("/nowhere"))
        answer = post(running, "/v1/predict/wav", wav(), params={"model": "broken"})
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the model 'broken' cannot be loaded; the service's log says why"
        assert requests.get(running.url + "/v1/model?model=broken", timeout=9).status_code == 503
        assert post(running, "/v1/predict/wav", wav()).status_code == 200


def test_a_max_pending_of_zero_raises_an_error_that_names_it() -> None:
    with pytest.raises(PredictionError, match=r"limits\.max_pending is 0"):
        Limits(max_pending=0)


def test_a_stopping_service_finishes_requests_in_progress(
    start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original, begun = wav(), Predictor.scores, threading.Event()

    def slow(self: Predictor, pictures: list[np.ndarray]) -> Scores:
        begun.set()
        time.sleep(1)
        return original(self, pictures)

    monkeypatch.setattr(Predictor, "scores", slow)
    with ThreadPoolExecutor(1) as client:
        with start() as running:
            answer = client.submit(post, running, "/v1/predict/wav", path)
            assert begun.wait(10)
        assert answer.result().status_code == 200
        with pytest.raises(requests.ConnectionError):
            requests.get(running.url + "/healthz", timeout=9)


def test_metrics_are_served_in_prometheus_format(start: Start, wav: WriteWav) -> None:
    with start() as running:
        label = post(running, "/v1/predict/wav", wav()).json()["label"]
        post(running, "/v1/predict/wav", b"text")
        requests.get(running.url + "/somewhere/else", timeout=9)
        answer = requests.get(running.url + "/metrics", timeout=9)
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
    assert found["spectro_requests_total", "/v1/predict/wav", "200", "POST"] == 1
    assert found["spectro_requests_total", "/v1/predict/wav", "415", "POST"] == 1
    assert found["spectro_requests_total", "404", "GET", "other"] == 1
    assert found["spectro_labels_total", label] == 1
    assert found["spectro_batch_size_count",] == 1


def _batches(count: int, max_batch: int) -> tuple[list[int], list[float]]:
    """Score pictures that all arrive at once; returns the batch sizes and the answers."""
    sizes: list[int] = []

    def score(pictures: object) -> Scores:
        values = np.array([[picture[0, 0]] for picture in pictures], np.float64)  # type: ignore[attr-defined]
        if (values == 99).any():
            raise ValueError("a picture that breaks the network")
        return Scores(values, values.astype(np.float32))

    async def ask() -> list[object]:
        batcher = Batcher(score, max_batch, sizes.append)
        pictures = [np.full((1, 1), number, np.uint8) for number in range(count)]
        found = await asyncio.gather(*(batcher.scores(one) for one in pictures), return_exceptions=True)
        await batcher.close()
        return found

    return sizes, [one if isinstance(one, Exception) else one.probabilities[0, 0] for one in asyncio.run(ask())]  # type: ignore[misc,attr-defined]


def test_concurrent_pictures_share_batches_and_get_their_own_scores() -> None:
    sizes, answers = _batches(20, 8)
    assert answers == list(range(20))
    assert sizes == [8, 8, 4]
    assert _batches(5, 1) == ([1] * 5, list(range(5)))


def test_a_failing_batch_does_not_affect_other_batches() -> None:
    sizes, answers = _batches(104, 8)
    failed = [place for place, answer in enumerate(answers) if isinstance(answer, ValueError)]
    assert failed == list(range(96, 104))
    assert [answer for answer in answers if not isinstance(answer, Exception)] == list(range(96))
    assert sum(sizes) == 104


def test_the_guard_limits_received_bytes_without_a_content_length() -> None:
    received: list[bytes] = []

    async def app(_scope: object, receive: object, _send: object) -> None:
        while True:
            received.append((await receive())["body"])  # type: ignore[operator]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": bytes(60_000), "more_body": True}

    scope = {"type": "http", "path": "/v1/predict/wav", "headers": [], "client": ("here", 1)}
    guard = Guard(app, Limits(max_mb=0.1))  # type: ignore[arg-type]
    with pytest.raises(HTTPException) as raised:
        asyncio.run(guard(scope, receive, receive))  # type: ignore[arg-type]
    assert raised.value.status_code == 413
    assert len(received) == 1
