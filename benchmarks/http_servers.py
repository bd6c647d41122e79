"""HTTP servers among hostile clients, without a service behind them: which has limits, and how fast is each?

    python benchmarks/http_servers.py [--seconds 8]      # what is not installed is skipped

Each server runs a bare application with the limits that it offers. Its speed is measured first, over one connection.
Then each attack runs in its own process while `/healthz` is requested over new connections.
"""

import argparse
import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server import under_attack

ATTACKS = ("endless_header", "endless_headers", "silent", "slow_header", "dripping_body", "tiny_chunks")
COMMANDS = {  # a name consists of the packages that it needs
    "uvicorn, h11": "uvicorn http_servers:app --port {port} --http h11 --log-level critical",
    "uvicorn, httptools": "uvicorn http_servers:app --port {port} --http httptools --log-level critical",
    "hypercorn": "hypercorn http_servers:app --bind 127.0.0.1:{port} --read-timeout 5 --keep-alive 5"
    " --log-level CRITICAL",
    "granian": "granian http_servers:app --interface asgi --port {port} --http 1 --http1-header-read-timeout 5000"
    " --no-log",
}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read each request, and answer."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] != "http.disconnect":
        headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"status":"ok"}'})


@contextmanager
def serving(command: str) -> Iterator[int]:
    """Run a server; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = command.format(port=port).split()
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=Path(__file__).parent)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def speed(port: int, seconds: float = 3.0) -> float:
    """Return the requests per second over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        connection.request("POST", "/", bytes(1000))
        connection.getresponse().read()
        count += 1
    connection.close()
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each attack")
    given = parser.parse_args()
    for name, command in COMMANDS.items():
        if not all(importlib.util.find_spec(package) for package in name.split(", ")):
            continue
        with serving(command) as port:
            found: dict[str, object] = {"server": name, "requests a second": round(speed(port))}
            for attack in ATTACKS:
                found[attack] = under_attack(port, attack, given.seconds)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
