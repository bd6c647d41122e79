"""Uploads: how they are parsed, limited, queued and dropped."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import requests
import soundfile

from spectro.engines.base import Scores
from spectro.errors import CheckpointError
from spectro.predict.predictor import Predictor
from spectro.serve.turns import CLIENT, FairThreads
from tests.conftest import WriteWav
from tests.serve.conftest import Running, Start, ask

HEAD = b"POST /v1/predict/wav HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
KIND = {"Content-Type": "multipart/form-data; boundary=x"}


def detail(answer: requests.Response, status: int) -> str:
    """Return the error message of an answer, which must have this status."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert list(found) == ["detail"]
    assert isinstance(found["detail"], str)
    return found["detail"]


def test_unknown_and_repeated_options_get_422_with_a_hint(service: Running, wav: WriteWav) -> None:
    files, url = {"file": wav().read_bytes()}, service.url
    said = detail(requests.post(url + "/v1/predict/wav?min_marign=0.9", files=files, timeout=60), 422)
    assert said.startswith("there is no option 'min_marign'; did you mean min_margin? The options are ")
    said = detail(requests.post(url + "/v1/timeline?hop=1", files=files, timeout=60), 422)
    assert "did you mean hop_s?" in said
    assert "did you mean model?" in detail(requests.get(url + "/v1/model?modle=a", timeout=9), 422)
    said = detail(requests.get(url + "/healthz?a=1", timeout=9), 422)
    assert said == "there is no option 'a'; this address takes none"
    twice = requests.post(url + "/v1/predict/wav?min_margin=0&min_margin=1", files=files, timeout=60)
    assert detail(twice, 422) == "the option min_margin is given 2 times; give it once"


def test_invalid_option_values_get_an_error_that_names_the_option(service: Running, wav: WriteWav) -> None:
    files = {"file": wav().read_bytes()}
    cases = {
        "min_margin=x": "min_margin is 'x'; it must be a number",
        "min_margin=-1": "min_margin is -1; it must be at least 0",
        "min_margin=nan": "min_margin is nan; it must be",
        "embedding=perhaps": "embedding is 'perhaps'; it must be true or false",
        "model=" + 201 * "x": "model is longer than 200 characters",
    }
    for option, expected in cases.items():
        answer = requests.post(f"{service.url}/v1/predict/wav?{option}", files=files, timeout=60)
        assert detail(answer, 422).startswith(expected)


def test_missing_or_broken_forms_get_an_error_with_upload_instructions(service: Running, wav: WriteWav) -> None:
    url, content = service.url + "/v1/predict/wav", wav().read_bytes()
    how = "send the recording as the field `file` of a multipart/form-data form, as curl -F file=@clip.wav does"
    for raw in (content, b"", b'{"file": 1}'):
        assert detail(requests.post(url, data=raw, timeout=60), 422) == f"file is missing: {how}"
    wrong_field = requests.post(url, files={"audio": content}, timeout=60)
    assert detail(wrong_field, 422).startswith("the form has a field 'audio'; only `file` is allowed")
    for broken, said in ((b"nonsense", "cannot be read"), (PART + content, "is incomplete"), (b"", "is incomplete")):
        assert detail(requests.post(url, data=broken, headers=KIND, timeout=60), 400) == f"the form {said}: {how}"
    empty = requests.post(url, data=b"--x--\r\n", headers=KIND, timeout=60)
    assert empty.status_code in (400, 422)


def test_an_upload_without_a_file_name_is_accepted(service: Running, wav: WriteWav) -> None:
    for head in (b'name="file"', b'name="file"; filename=""', b'filename="a.wav"; name="file"'):
        body = b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n%s\r\n--x--\r\n"
        good = requests.post(service.url + "/v1/predict/wav", data=body % wav().read_bytes(), headers=KIND, timeout=60)
        assert good.status_code == 200, good.text
        bad = requests.post(service.url + "/v1/predict/wav", data=body % b"text", headers=KIND, timeout=60)
        assert "is not a recording" in detail(bad, 415)


def test_answers_to_very_long_input_stay_short(service: Running) -> None:
    texts = PIL.PngImagePlugin.PngInfo()
    texts.add_text("spec", "x" * 1_000_000, zip=True)
    picture = io.BytesIO()
    PIL.Image.new("L", (80, 40)).save(picture, "PNG", pnginfo=texts)
    for name, content in (("a.png", picture.getvalue()), ("x" * 3000 + ".png", b"text")):
        answer = requests.post(service.url + "/v1/predict/image", files={"file": (name, content)}, timeout=60)
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 2048
    for path in ("/" + "x" * 9000, "/v1/model?" + "x" * 9000, "/v1/model?model=" + "x" * 9000):
        assert len(requests.get(service.url + path, timeout=9).content) < 2048


@pytest.mark.parametrize("path", ["/v1/predict/wav", "/v1/timeline"])
def test_recordings_above_the_sample_limit_get_413(start: Start, path: str) -> None:
    heavy = io.BytesIO()
    soundfile.write(heavy, np.zeros((96_000, 8), np.int16), 96_000, format="FLAC")
    with start(max_samples=500_000, max_timeline_samples=500_000) as running:
        answer = requests.post(running.url + path, files={"file": heavy.getvalue()}, timeout=60)
        said = detail(answer, 413)
        assert "holds 1 million samples (8 channels at 96000 Hz), more than the limit of 0.5 million" in said


def test_a_failing_network_gets_500_without_internal_details(
    start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails: list[Exception] = []
    scores = Predictor.scores

    def failing(self: Predictor, pictures: list[np.ndarray]) -> Scores:
        if fails:
            raise fails.pop()
        return scores(self, pictures)

    monkeypatch.setattr(Predictor, "scores", failing)
    files = {"file": wav().read_bytes()}
    with start() as running:
        for path in ("/v1/predict/wav", "/v1/timeline"):
            fails.append(CheckpointError("checkpoint: its probabilities are not finite"))
            answer = requests.post(running.url + path, files=files, timeout=60)
            assert detail(answer, 500) == "the service failed; its log says why"  # names no folder of this machine
            fails.append(RuntimeError("a secret"))
            answer = requests.post(running.url + path, files=files, timeout=60)
            assert detail(answer, 500) == "the service failed; its log says why"
            assert requests.post(running.url + path, files=files, timeout=60).status_code == 200


def test_queued_requests_of_disconnected_clients_are_dropped(
    start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, drawn, scored = threading.Event(), list[io.BytesIO](), list[int]()
    render, scores = Predictor.render, Predictor.scores

    def slow_render(self: Predictor, source: io.BytesIO) -> np.ndarray:
        drawn.append(source)
        assert go_on.wait(20)
        return render(self, source)

    def counted(self: Predictor, pictures: list[np.ndarray]) -> Scores:
        scored.append(len(pictures))
        return scores(self, pictures)

    content = wav().read_bytes()
    body = PART + content + b"\r\n--x--\r\n"
    monkeypatch.setattr(Predictor, "render", slow_render)
    monkeypatch.setattr(Predictor, "scores", counted)
    with start() as running:
        for _ in range(12):
            with running.connected("127.0.0.2") as connection:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                running.until(lambda: bool(running.pending()))
        running.until(lambda: running.pending() == 0)
        go_on.set()
        assert requests.post(running.url + "/v1/predict/wav", files={"file": content}, timeout=60).status_code == 200
        assert len(drawn) <= 3  # two threads were working; the other ten never started
        running.until(lambda: not any(source.getvalue() for source in drawn))  # and there is nothing left to decode
        assert sum(scored) == 1  # nor were those two scored
        count = running.metrics.registry.get_sample_value(
            "spectro_requests_total", {"path": "/v1/predict/wav", "method": "POST", "status": "499"}
        )
        assert count == 12


def test_clients_take_turns() -> None:
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    threads = FairThreads(1, "test")

    def hold() -> None:
        begun.set()
        assert go_on.wait(20)

    CLIENT.set("first")
    first = [threads.submit(hold), *(threads.submit(order.append, f"first {number}") for number in range(3))]
    assert begun.wait(20)
    CLIENT.set("second")
    second = [threads.submit(order.append, f"second {number}") for number in range(2)]
    CLIENT.set("third")
    cancelled, failing = threads.submit(order.append, "third"), threads.submit(int, "x")
    assert cancelled.cancel()
    go_on.set()
    for one in (*first, *second):
        one.result(20)
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(20)
    threads.shutdown()
    assert order == ["first 0", "second 0", "first 1", "second 1", "first 2"]


def test_an_aborted_upload_frees_its_memory_and_prints_nothing(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with start() as running:
        with running.connected() as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + PART + bytes(1000))
            running.until(lambda: bool(running.bytes_in_memory()))
        running.until(lambda: not running.bytes_in_memory() and not running.pending())
    assert capsys.readouterr().err == ""


def test_forms_that_are_hard_to_parse_are_refused(service: Running) -> None:
    bodies = [b"\r" * 2_000_000, b"\r\n--" * 500_000, (b"\r\n--" + b"x" * 3) * 300_000]
    with ThreadPoolExecutor(3) as clients:
        answers = list(
            clients.map(lambda body: requests.post(service.url + "/v1/predict/wav", files={"file": body}), bodies)
        )
    assert [answer.status_code for answer in answers] == [415] * 3
    many = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n' for _ in range(9999)
    )
    answer = ask(service, HEAD + b"Content-Length: %d\r\n\r\n" % len(many) + many)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_the_form_parser_logs_nothing_about_broken_forms(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (b"x" * 5000, b"--x\r\n" * 500, iter([b"a", b"b"] * 50)):
        answer = requests.post(service.url + "/v1/predict/wav", data=content, headers=kind, timeout=30)
        assert answer.status_code == 400
    assert not [record for record in caplog.records if record.name.startswith("python_multipart")]
