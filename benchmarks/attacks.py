"""Attacks of hostile clients on an HTTP service; each runs in its own process, against this machine alone.

    python benchmarks/attacks.py NAME PORT [--seconds 8] [--file FILE]

prints counts of the outcomes. Attackers use the address 127.0.0.2, so that the service can distinguish them from the
client at 127.0.0.1 (Linux has all of 127.0.0.0/8; elsewhere, add the address first).
"""

import argparse
import json
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ATTACKER = "127.0.0.2"
HEAD = b"POST /v1/predict/wav HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
ENDLESS = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-a: "
PATHS = ("/healthz", "/v1/model", "/metrics", "/openapi.json", "/", "/nothing", "/gradio_api/cancel", "/v1/predict/wav")
METHODS = ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 3000)


@dataclass(frozen=True)
class Attack:
    """Target and duration of an attack.

    Args:
        port: the service's port on 127.0.0.1.
        seconds: duration.
        file: content to upload, for the attacks that upload a recording.
    """

    port: int
    seconds: float
    file: bytes = b""

    def going_on(self) -> Iterator[None]:
        """Yield until the time is up."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            yield

    def connected(self) -> socket.socket:
        """Return a new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=5, source_address=(ATTACKER, 0))

    def asked(self, request: bytes) -> str:
        """Send a request on its own connection; return the status, `closed`, or the error's name."""
        try:
            with self.connected() as connection:
                with suppress(OSError):  # the service may answer before it has read everything
                    connection.sendall(request)
                return connection.recv(64)[9:12].decode() or "closed"
        except OSError as error:
            return type(error).__name__


@contextmanager
def held(attack: Attack, count: int, begin: bytes = b"") -> Iterator[tuple[list[socket.socket], Counter[str]]]:
    """Open many connections that send `begin`; yield them and the outcomes."""
    connections, seen = [], Counter[str]()
    try:
        for _ in range(count):
            try:
                connections.append(attack.connected())
                connections[-1].sendall(begin)
            except OSError as error:
                seen[type(error).__name__] += 1
        yield connections, seen
    finally:
        for one in connections:
            one.close()


def pour(attack: Attack, count: int, begin: bytes, more: bytes, pause_s: float = 0.0) -> Counter[str]:
    """Send `more` repeatedly on many connections, and count those that the service ended."""
    with held(attack, count, begin) as (connections, seen), selectors.DefaultSelector() as selector:
        for one in connections:
            one.setblocking(False)
            selector.register(one, selectors.EVENT_READ | selectors.EVENT_WRITE)
        for _ in attack.going_on():
            for key, events in selector.select(0.2):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                try:
                    answer = ready.recv(64) if events & selectors.EVENT_READ else None
                    if answer is None:
                        ready.send(more)
                        continue
                    seen[answer[9:12].decode() or "closed"] += 1
                except BlockingIOError:
                    continue
                except OSError as error:
                    seen[type(error).__name__] += 1
                selector.unregister(ready)
            time.sleep(pause_s)
            if not selector.get_map():
                break
        seen["still open"] += len(selector.get_map())
    return seen


def endless_header(attack: Attack) -> Counter[str]:
    """Send an endless header on one connection at a time, repeatedly."""
    return _again(attack, 1, ENDLESS, b"a" * 65536)


def endless_headers(attack: Attack) -> Counter[str]:
    """Send endless headers on ten connections at a time, repeatedly."""
    return _again(attack, 10, ENDLESS, b"a" * 65536)


def _again(attack: Attack, count: int, begin: bytes, more: bytes) -> Counter[str]:
    """Pour over new connections whenever all are closed."""
    seen, end = Counter[str](), time.monotonic() + attack.seconds
    while (left_s := end - time.monotonic()) > 0:
        seen += pour(Attack(attack.port, left_s), count, begin, more)
    return seen


def silent(attack: Attack) -> Counter[str]:
    """Hold 1,023 connections that send nothing."""
    return pour(attack, 1023, b"", b"", 0.2)


def slow_header(attack: Attack) -> Counter[str]:
    """Hold 50 connections whose header arrives a byte every half second."""
    return pour(attack, 50, ENDLESS, b"a", 0.5)


def dripping_body(attack: Attack) -> Counter[str]:
    """Hold 100 uploads that arrive a byte every half second."""
    return pour(attack, 100, HEAD + b"Content-Length: 1000000\r\n\r\n" + PART, b"a", 0.5)


def tiny_chunks(attack: Attack) -> Counter[str]:
    """Send ten uploads in chunks of one byte, as fast as the service accepts them."""
    return _again(attack, 10, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10_000)


def unread(attack: Attack) -> Counter[str]:
    """Hold 50 connections that keep sending requests and never read an answer."""
    asking = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
    with held(attack, 50, asking) as (connections, seen):
        for one in connections:
            one.setblocking(False)
        for _ in attack.going_on():
            for one in list(connections):
                try:
                    one.send(asking)
                except BlockingIOError:
                    continue
                except OSError:
                    seen["closed"] += 1
                    connections.remove(one)
                    one.close()
            time.sleep(0.05)
        seen["still open"] += len(connections)
    return seen


def hang_ups(attack: Attack) -> Counter[str]:
    """Upload a heavy recording, 12 at a time, and hang up once it is sent."""
    upload = PART + attack.file + b"\r\n--x--\r\n"
    begin = HEAD + b"Content-Length: %d\r\n\r\n" % len(upload) + upload
    seen = Counter[str]()
    for _ in attack.going_on():
        with held(attack, 12, begin) as (connections, failed):
            seen["sent"] += len(connections)
            seen += failed
            time.sleep(0.3)
    return seen


def flood(attack: Attack) -> Counter[str]:
    """Upload a heavy recording, 48 at a time, and wait for the answers."""
    upload = PART + attack.file + b"\r\n--x--\r\n"
    begin = HEAD + b"Content-Length: %d\r\n\r\n" % len(upload) + upload
    seen = Counter[str]()
    for _ in attack.going_on():
        with held(attack, 48, begin) as (connections, failed):
            seen += failed
            for one in connections:
                one.settimeout(60)
                seen[one.recv(64)[9:12].decode() or "closed"] += 1
    return seen


def guesses(attack: Attack) -> Counter[str]:
    """Guess keys, as fast as they are answered."""
    seen: Counter[str] = Counter()
    for number, _ in enumerate(attack.going_on()):
        key = b"Authorization: Bearer %d\r\n" % number
        seen[attack.asked(b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + key + b"\r\n")] += 1
    return seen


def foreign_hosts(attack: Attack) -> Counter[str]:
    """Send requests as a page of another site would, with a host name that points here, or with a form."""
    names = (b"evil.example", b"evil.example:80", b"localhost.evil.example", b"127.0.0.1.evil.example", b"[::1].evil")
    asking = [b"GET /v1/model HTTP/1.1\r\nHost: %s\r\nX-Forwarded-Host: localhost\r\n\r\n" % name for name in names]
    asking.append(HEAD + b"Origin: http://evil.example\r\nContent-Length: 9\r\n\r\n--x--\r\n\r\n")
    return Counter(attack.asked(one) for _ in attack.going_on() for one in asking)


def huge_json(attack: Attack) -> Counter[str]:
    """Send 30 MiB of JSON to every path."""
    body = b'{"a": [' + b"[1], " * (6 * 2**20) + b"1]}"
    head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return Counter(attack.asked(b"POST " + path.encode() + head + body) for _ in attack.going_on() for path in PATHS)


def methods(attack: Attack) -> Counter[str]:
    """Send all methods to all paths, with the header that makes some servers use another method."""
    rest = b" HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: POST\r\nContent-Length: 0\r\n\r\n"
    asking = [f"{method} {path}".encode() + rest for method in METHODS for path in PATHS]
    return Counter(attack.asked(one) for _ in attack.going_on() for one in asking)


ATTACKS: dict[str, Callable[[Attack], Counter[str]]] = {
    one.__name__: one
    for one in (
        endless_header, endless_headers, silent, slow_header, dripping_body, tiny_chunks, unread, hang_ups, flood,
        guesses, foreign_hosts, huge_json, methods,
    )
}  # fmt: skip


def main() -> None:
    """Attack, and print the outcomes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ATTACKS)
    parser.add_argument("port", type=int)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--file", type=Path, help="a recording to upload")
    given = parser.parse_args()
    content = given.file.read_bytes() if given.file else b""
    json.dump(ATTACKS[given.name](Attack(given.port, given.seconds, content)), sys.stdout)


if __name__ == "__main__":
    main()
