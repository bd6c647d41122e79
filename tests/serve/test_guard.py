"""Which requests are accepted: host names, keys, origins, sizes, pace."""

import asyncio
from pathlib import Path

import pytest
import requests

from spectro.errors import PredictionError
from spectro.serve.callers import Keys, Names, Proxies, share_of
from spectro.serve.limits import Limits
from spectro.serve.turns import unless_gone
from tests.conftest import WriteWav
from tests.serve.conftest import Running, Start, ask


def test_requests_with_an_unknown_host_header_get_421(service: Running) -> None:
    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "a@localhost",
        "[::1].evil",
    ):
        answer = requests.get(service.url + "/v1/model", headers={"Host": host}, timeout=9)
        assert answer.status_code == 421
        assert "--allowed_hosts" in answer.json()["detail"]
    for host in ("localhost", "LocalHost:7860", "localhost.", "127.0.0.1:1", "127.0.0.9", "[::1]:7860"):
        assert requests.get(service.url + "/v1/model", headers={"Host": host}, timeout=9).status_code == 200
    assert requests.get(service.url + "/healthz", headers={"Host": "10.0.0.7"}, timeout=9).status_code == 200


def test_x_forwarded_host_is_ignored(service: Running) -> None:
    evil = {"Host": "evil.example", "X-Forwarded-Host": "localhost"}
    assert requests.get(service.url + "/v1/model", headers=evil, timeout=9).status_code == 421
    good = {"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "1.2.3.4"}
    assert requests.get(service.url + "/v1/model", headers=good, timeout=9).status_code == 200


def test_host_names_match_the_bound_address_or_the_allowed_names() -> None:
    names = Names("10.1.2.3", ["emotion.example.org"])
    assert [names.knows(one) for one in ("10.1.2.3:80", "Emotion.example.org", "10.1.2.4", "example.org")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert Names("0.0.0.0").knows("192.168.1.5:7860")  # nobody can point an address here, unlike a name
    assert not Names("0.0.0.0").knows("evil.example")
    assert Names(allowed=["*"]).knows("evil.example")
    assert not names.knows("[::1")


def test_cross_origin_requests_are_refused_on_a_service_without_keys(service: Running, wav: WriteWav) -> None:
    url, content = service.url + "/v1/predict/wav", wav().read_bytes()
    for origin in ("http://evil.example", "null", "http://localhost:3000", "http://[", f"http://127.0.0.1:{1}"):
        answer = requests.post(url, files={"file": content}, headers={"Origin": origin}, timeout=9)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert requests.post(url, files={"file": content}, headers={"Origin": service.url}, timeout=60).status_code == 200
    asked = requests.options(url, headers={"Origin": "http://evil.example"}, timeout=9)
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.lower().startswith("access-control")]


def test_the_origin_of_an_allowed_host_is_accepted_behind_a_proxy() -> None:
    names = Names(allowed=["emotion.example.org"])
    assert names.sent("https://emotion.example.org", "127.0.0.1:7860")
    assert not names.sent("https://other.example.org", "127.0.0.1:7860")


def test_keys_ignore_the_case_of_bearer_and_are_checked_before_the_body(start: Start) -> None:
    with start(keys=("first", "zwölf")) as running:
        url = running.url + "/v1/model"
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert requests.get(url, headers={"Authorization": f"{scheme} first"}, timeout=9).status_code == 200
        assert requests.get(url, headers={"X-API-Key": "zwölf".encode()}, timeout=9).status_code == 200
        for path in ("/v1/predict/wav", "/nothing", "/openapi.json", "/metrics"):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n"
            assert ask(running, head.encode()).startswith(b"HTTP/1.1 401 ")  # although none of the body has arrived
        assert requests.get(running.url + "/", timeout=9).status_code != 401
        assert requests.get(running.url + "/static/a.js", timeout=9).status_code == 404


def test_an_address_is_blocked_after_too_many_wrong_keys(start: Start) -> None:
    with start(keys=("right",), max_guesses=5) as running:
        url = running.url + "/v1/model"
        answers = [requests.get(url, headers={"X-API-Key": str(guess)}, timeout=9) for guess in range(8)]
        assert [one.status_code for one in answers] == [401] * 5 + [429] * 3
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 61
        assert requests.get(url, headers={"X-API-Key": "right"}, timeout=9).status_code == 429
        other = ask(running, b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nX-API-Key: right\r\n\r\n", "127.0.0.2")
        assert other.startswith(b"HTTP/1.1 200 ")
        assert requests.get(url, timeout=9).status_code == 401


def test_wrong_keys_are_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("spectro.serve.callers.time.monotonic", lambda: now[0])
    keys = Keys(["right"], 2)
    wrong, right = {"x-api-key": "wrong"}, {"x-api-key": "right"}
    statuses = []
    for _ in range(3):
        refusal = keys.refusal(wrong, "here")
        statuses.append(refusal and refusal.status_code)
    now[0] = 61
    assert statuses == [401, 401, 429]
    assert keys.refusal(right, "here") is None
    monkeypatch.setattr("spectro.serve.callers.MANY_CLIENTS", 100)
    keys = Keys(["right"], 2)
    for number in range(2000):  # one a second, so that 61 of them count
        now[0] += 1
        keys.refusal(wrong, str(number))
        keys.refusal(right, "here")
    assert len(keys._wrong) < 200


def test_ipv6_addresses_in_the_same_network_count_as_the_same_client() -> None:
    assert share_of("2001:db8::1") == share_of("2001:db8::ffff") != share_of("2001:db8:0:1::1")
    assert share_of("::ffff:10.0.0.1") == share_of("10.0.0.1") != share_of("10.0.0.2")
    assert share_of("a name") == "a name"
    assert share_of("::1") != share_of("127.0.0.1")


def test_x_forwarded_for_is_trusted_from_configured_proxies_only(start: Start, wav: WriteWav) -> None:
    content = wav().read_bytes()
    for proxies, statuses in (((), {429}), (("127.0.0.1",), {401})):
        with start(keys=("right",), max_guesses=1, proxies=proxies) as running:
            url = running.url + "/v1/predict/wav"
            found = set()
            for number in range(4):
                headers = {"X-API-Key": "wrong", "X-Forwarded-For": f"10.0.0.{number}"}
                found.add(requests.post(url, files={"file": content}, headers=headers, timeout=9).status_code)
            assert found == statuses | {401}


def test_proxies_match_a_network_and_refuse_a_host_name() -> None:
    assert "10.1.2.3" in Proxies(["10.0.0.0/8"])
    assert "11.1.2.3" not in Proxies(["10.0.0.0/8"])
    assert "" not in Proxies(["10.0.0.0/8"])
    with pytest.raises(PredictionError, match="'nginx' is not an address or network"):
        Proxies(["nginx"])


def test_uploads_above_the_memory_limit_get_429_or_503(start: Start, wav: WriteWav) -> None:
    head = b"POST /v1/timeline HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    half = head + b"Content-Length: 1000000\r\n\r\n" + part + bytes(450_000)
    with start(max_memory_mb=1) as running:
        url = running.url + "/v1/predict/wav"
        answer = requests.post(url, files={"file": bytes(600_000)}, timeout=9)
        assert (answer.status_code, answer.json()["detail"]) == (
            429,
            "your uploads in progress exceed 0.5 MiB; wait for one to finish",
        )
        with running.connected("127.0.0.2") as one, running.connected("127.0.0.3") as other:
            for connection in (one, other):
                connection.sendall(half)
            running.until(lambda: running.bytes_in_memory() > 900_000)
            full = requests.post(url, files={"file": bytes(300_000)}, timeout=9)
            assert (full.status_code, full.headers["Retry-After"]) == (503, "5")
        running.until(lambda: running.bytes_in_memory() == 0)
        assert requests.post(url, files={"file": wav().read_bytes()}, timeout=60).status_code == 200


def test_an_upload_below_the_minimum_rate_gets_408(start: Start) -> None:
    with start(idle_s=1.0, min_kb_s=100) as running, running.connected() as connection:
        head = b"POST /v1/predict/wav HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        connection.sendall(head + b"Content-Length: 1000000\r\n\r\n--x\r\n")
        connection.settimeout(0.2)
        answer = b""
        for _ in range(100):
            try:
                answer = connection.recv(4096)
                break
            except TimeoutError:
                connection.sendall(b"a")
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_address_above_its_timeline_limit_gets_429_and_others_get_200(start: Start, wav: WriteWav) -> None:
    head = b"POST /v1/timeline HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with start(max_timelines=2, max_timelines_per_client=1) as running, running.connected("127.0.0.2") as held:
        held.sendall(head + b"Content-Length: 1000\r\n\r\n--x\r\n")
        running.until(lambda: running.pending() == 1)
        again = ask(running, head + b"Content-Length: 1000\r\n\r\n", "127.0.0.2")
        assert again.startswith(b"HTTP/1.1 429 ")
        files = {"file": wav().read_bytes()}
        assert requests.post(running.url + "/v1/timeline", files=files, timeout=60).status_code == 200


def test_a_min_kb_s_of_zero_raises_an_error_that_names_it() -> None:
    with pytest.raises(PredictionError, match=r"limits\.min_kb_s is 0"):
        Limits(min_kb_s=0)


def test_uploads_create_no_temporary_files(start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object, **_options: object) -> object:
        raise AssertionError("a temporary file")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{name}", forbidden)
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", forbidden)
    path: Path = wav(rate=48_000)
    content = path.read_bytes() + bytes(3_000_000)  # after the sound, where a recording may have other chunks
    with start() as running:
        for place in ("/v1/predict/wav", "/v1/timeline"):
            assert requests.post(running.url + place, files={"file": content}, timeout=60).status_code == 200


def test_guard_counters_return_to_zero_after_requests(start: Start, wav: WriteWav) -> None:
    with start() as running:
        for content in (wav().read_bytes(), b"text"):
            requests.post(running.url + "/v1/predict/wav", files={"file": content}, timeout=60)
        guard = running.guard
        running.until(lambda: not guard._pending and not guard._bytes and not guard._timelines)


def test_unless_gone_returns_the_result_or_none_after_a_disconnect() -> None:
    async def never() -> None:
        await asyncio.sleep(3600)

    async def at_once() -> int:
        return 3

    assert asyncio.run(unless_gone(at_once(), never())) == 3
    assert asyncio.run(unless_gone(never(), asyncio.sleep(0))) is None
