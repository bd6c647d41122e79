"""Connections: how many, how fast, and how they end."""

import contextlib
import http.client
import io
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from spectro.errors import PredictionError
from spectro.predict.predictor import Predictor
from spectro.serve.server import HEADER_BYTES, Server, allow_files
from spectro.verbs.serve import KEYS, ServeSettings, run
from tests.conftest import REPOSITORY, World, WriteWav
from tests.serve.conftest import Running, Start, ask

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/predict/wav HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"


def health_check_s(running: Running) -> float:
    """Return the seconds that /healthz takes over a new connection."""
    started = time.monotonic()
    assert ask(running, GET + b"\r\n").startswith(b"HTTP/1.1 200 ")
    return time.monotonic() - started


def read_until_closed(connection: socket.socket) -> bytes:
    """Return all bytes until the other side closes."""
    connection.settimeout(20)
    found = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(65536):
            found += more
    return found


def test_a_request_header_that_is_too_long_gets_431(service: Running) -> None:
    with service.connected() as connection:
        connection.sendall(GET + b"X-a: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"a" * 10_000)
        assert health_check_s(service) < 5
    assert b" 431 " in ask(service, GET + b"X-a: " + b"a" * 30_000)
    assert b" 431 " in ask(service, GET + b"a: b\r\n" * 10_000 + b"\r\n")  # although all of it arrived at once
    fitting = GET + b"X-a: " + b"a" * (HEADER_BYTES - len(GET) - 9) + b"\r\n\r\n"
    assert len(fitting) == HEADER_BYTES
    assert b" 200 " in ask(service, fitting)
    assert b" 431 " in ask(service, b" ".join((fitting[:-4], fitting[-4:])))


def test_invalid_http_gets_400_and_an_error_message(service: Running) -> None:
    for nonsense in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        answer = ask(service, nonsense)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b'{"detail": "the request is not valid HTTP/1.1, or its body comes in tiny chunks"}')


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Content-Length: +5",
        b"Content-Length : 5",
        b"Host: localhost",
        b"X-a: b\r\n c",
        b"X-a: b\rc",
        b"X-a: b\0c",
    ],
)
def test_a_header_that_servers_could_read_differently_gets_400(service: Running, header: bytes) -> None:
    with service.connected() as connection:
        connection.sendall(POST + header + b"\r\n\r\n0\r\n\r\n")
        assert read_until_closed(connection).startswith(b"HTTP/1.1 400 ")


def test_an_offer_of_another_protocol_is_ignored(service: Running, wav: WriteWav) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    with requests.Session() as session:
        for _ in range(2):
            files = {"file": wav().read_bytes()}
            answer = session.post(service.url + "/v1/predict/wav", files=files, headers=offer, timeout=60)
            assert (answer.status_code, answer.headers.get("Connection")) == (200, None)


def test_a_body_in_tiny_chunks_is_refused(service: Running) -> None:
    answer = ask(service, POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000)
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("endless", [b"5;" + b"a" * 40_000, b"0" * 40_000, b"0\r\n" + b"a: b\r\n" * 7000])
def test_a_chunk_header_or_trailer_that_is_too_long_gets_431(service: Running, endless: bytes) -> None:
    assert b" 431 " in ask(service, POST + b"Transfer-Encoding: chunked\r\n\r\n" + endless)


def test_trailers_are_not_headers(service: Running) -> None:
    body = b"1\r\na\r\n0\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    head = b"POST /v1/predict/wav HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"file is missing" in ask(service, head + body)


def test_a_chunked_upload_is_accepted(service: Running, wav: WriteWav) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = part + wav().read_bytes() + b"\r\n--x--\r\n"
    pieces = (body[place : place + 4000] for place in range(0, len(body), 4000))
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(service.url + "/v1/predict/wav", data=pieces, headers=kind, timeout=60)  # type: ignore[arg-type]
    assert answer.status_code == 200


def test_connections_without_a_complete_header_time_out_with_408(start: Start) -> None:
    with start(header_s=1.0) as running, ExitStack() as stack:
        silent, slow = (stack.enter_context(running.connected()) for _ in range(2))
        slow.sendall(GET)
        assert read_until_closed(slow).startswith(b"HTTP/1.1 408 ")
        assert read_until_closed(silent).startswith(b"HTTP/1.1 408 ")


def test_a_kept_alive_connection_with_an_incomplete_header_times_out(start: Start) -> None:
    with start(header_s=1.0) as running, running.connected() as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"G")
        assert read_until_closed(connection).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_keeps_sending_a_refused_body_is_disconnected(start: Start) -> None:
    with start(idle_s=1.0) as running, running.connected() as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 404 ")
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 20:
                connection.sendall(b"a")
                time.sleep(0.05)


def test_a_client_that_reads_no_answers_is_disconnected(start: Start) -> None:
    with start(idle_s=1.0) as running, running.connected() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asking = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(2000):
            try:
                connection.sendall(asking)
            except ConnectionError:
                break
            connection.settimeout(0.5)
        running.until(lambda: not running.connections())


def test_idle_connections_of_an_address_block_no_new_connections(start: Start) -> None:
    with start(max_connections_per_client=5) as running, ExitStack() as stack:
        silent = [stack.enter_context(running.connected("127.0.0.2")) for _ in range(40)]
        running.until(lambda: running.connections() == 5)
        assert health_check_s(running) < 5
        assert ask(running, GET + b"\r\n", "127.0.0.2").startswith(b"HTTP/1.1 200 ")  # nor their own
        assert read_until_closed(silent[0]) == b""


def test_idle_connections_of_many_addresses_block_no_new_connections(start: Start) -> None:
    with start(max_connections=20) as running, ExitStack() as stack:
        for number in range(60):
            stack.enter_context(running.connected(f"127.0.1.{number + 1}"))
        running.until(lambda: running.connections() == 20)
        assert health_check_s(running) < 5


def test_busy_connections_are_not_closed_for_new_connections(start: Start, wav: WriteWav) -> None:
    with start(max_connections_per_client=2) as running, ExitStack() as stack:
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body = part + wav().read_bytes() + b"\r\n--x--\r\n"
        working = [stack.enter_context(running.connected("127.0.0.2")) for _ in range(2)]
        for one in working:
            one.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body[:100])
        running.until(lambda: running.pending() == 2)
        third = stack.enter_context(running.connected("127.0.0.2"))
        assert read_until_closed(third) == b""
        for one in working:
            one.sendall(body[100:])
            assert one.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_proxy_may_exceed_the_connection_limit_per_client(start: Start) -> None:
    with start(max_connections_per_client=2, proxies=("127.0.0.0/8",)) as running, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(running.connected())
        running.until(lambda: running.connections() == 10)


def test_pipelined_requests_get_an_answer_with_connection_close(service: Running) -> None:
    with service.connected() as connection:
        connection.sendall((GET + b"\r\n") * 3000)
        answer = read_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()


def test_a_wrong_method_gets_405_and_an_unknown_path_404(service: Running) -> None:
    for path, allowed in (("/v1/predict/wav", "POST"), ("/v1/timeline", "POST"), ("/healthz", "GET")):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            if method == allowed:
                continue
            answer = requests.request(method, service.url + path, timeout=9)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
            assert answer.json()["detail"] == f"{method} is not supported at {path}; use {allowed}"
    nothing = requests.get(service.url + "/nothing", timeout=9)
    assert nothing.status_code == 404
    assert nothing.json()["detail"] == "there is nothing at /nothing; /openapi.json lists all addresses"
    disguised = {"X-HTTP-Method-Override": "POST"}
    assert requests.get(service.url + "/v1/timeline", headers=disguised, timeout=9).status_code == 405


def test_no_request_is_lost_during_shutdown(start: Start, wav: WriteWav, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectro.serve.server.LINGER_S", 30)  # slow clients are not closed during a request
    content, lost, ending = wav().read_bytes(), list[Exception](), threading.Event()
    counts = [0] * 8

    def client(place: int, url: str) -> None:
        with requests.Session() as session:
            while True:
                try:
                    answer = session.post(url, files={"file": content}, timeout=60)
                except requests.ConnectionError as error:
                    if "refused" not in str(error) or not ending.is_set():
                        lost.append(error)
                    return
                assert answer.status_code == 200
                counts[place] += 1

    with ThreadPoolExecutor(len(counts)) as clients:
        with start() as running:
            done = [clients.submit(client, place, running.url + "/v1/predict/wav") for place in range(len(counts))]
            running.until(lambda: min(counts) >= 3)
            ending.set()
        for one in done:
            one.result()
    assert not lost


def test_a_kept_alive_connection_gets_connection_close_during_shutdown(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectro.serve.server.LINGER_S", 30)
    with start() as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        assert (answer.read(), answer.getheader("Connection")) == (b'{"status":"ok"}', None)
        running.server.should_exit = True
        running.until(lambda: not _listens(running.port))
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        connection.close()


def test_sighup_stops_the_service_cleanly(world: World) -> None:
    command = [sys.executable, "-m", "spectro", "serve", "--checkpoint", str(world.checkpoint), "--port", "0"]
    with subprocess.Popen([*command, "--page", "false"], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stderr is not None
        try:
            port = int(process.stderr.readline().rpartition(":")[2])
            assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=20).status_code == 200
            process.send_signal(signal.SIGHUP)
            assert (process.wait(60), process.stderr.read()) == (0, "")
        finally:
            process.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_a_port_in_use_raises_an_error_before_the_checkpoint_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PredictionError, match=rf"cannot listen on port {port} of 127.0.0.1 \(.*in use\);"):
            run(ServeSettings(checkpoint=Path("/nowhere"), port=port, page=False))  # reported later than the port
    assert capsys.readouterr().err == ""


def test_a_public_service_without_a_key_prints_a_warning(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "run", lambda *_arguments, **_options: None)
    told = {}
    for host, key in (("127.0.0.1", ""), ("0.0.0.0", ""), ("0.0.0.0", "key")):
        monkeypatch.setenv(KEYS, key)
        assert run(ServeSettings(checkpoint=world.checkpoint, host=host, port=0, page=False, device="cpu")) == 0
        first, *others = capsys.readouterr().err.splitlines()
        assert first.startswith(f"service at http://{host}:")
        told[host, key] = [line for line in others if "anyone who can reach this machine" in line]
    assert {which for which, lines in told.items() if lines} == {("0.0.0.0", "")}


def test_the_least_probability_of_speech_is_an_option_of_the_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def load(*arguments: Any, **options: Any) -> Predictor:
        made.append(Predictor(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("spectro.verbs.serve.Predictor", load)
    monkeypatch.setattr(Server, "run", lambda *_arguments, **_options: None)
    assert run(ServeSettings(checkpoint=world.checkpoint, port=0, page=False, device="cpu", min_speech=0.2)) == 0
    assert [one.min_speech for one in made] == [0.2]
    with pytest.raises(PredictionError, match=r"min_speech is 1.2; it must lie between 0 and 1"):
        run(ServeSettings(checkpoint=world.checkpoint, port=0, page=False, device="cpu", min_speech=1.2))


def test_the_open_file_limit_is_raised_up_to_the_hard_limit() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert allow_files(10) >= 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(500, before[1]), before[1]))
        assert allow_files(before[1] + 1) == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_service_does_not_close_logging_handlers_of_its_process(start: Start) -> None:
    class Closing(logging.StreamHandler):  # type: ignore[type-arg]
        """Closes its stream, like the handler of absl, which TensorBoard installs."""

        def close(self) -> None:
            self.stream.close()
            super().close()

    handler = Closing(io.StringIO())
    with start():
        pass
    assert not handler.stream.closed
    handler.close()
