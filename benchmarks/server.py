"""Run the service in its own process, for the benchmarks."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Server:
    """A running service.

    Args:
        host: its address.
        port: its port.
        process: its process.
    """

    host: str
    port: int
    process: subprocess.Popen[str]

    @property
    def memory_mb(self) -> float:
        """Its current memory, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def running(*options: str, checkout: Path = HERE, **environment: str) -> Iterator[Server]:
    """Start `spectro serve` on a free port, and stop it when the block ends.

    Args:
        options: further options of the command.
        checkout: folder of the version to start; `python -m` imports from the working folder first.
        environment: additional environment variables.
    """
    command = [sys.executable, "-m", "spectro", "serve", "--port", "0", "--page", "false", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment, cwd=checkout)
    assert process.stderr is not None
    printed = []  # for example, that a network is exported
    for line in process.stderr:
        printed.append(line)
        if " at http://" in line:
            break
    else:
        raise RuntimeError(f"the service did not start: {''.join(printed)}")
    host, _, port = line.rpartition("://")[2].strip().rpartition(":")
    drained = threading.Thread(target=deque, args=(process.stderr, 0), daemon=True)  # a full pipe would block it
    drained.start()
    try:
        yield Server(host, int(port), process)
    finally:
        process.terminate()
        process.wait()
        drained.join()
        process.stderr.close()


def alive(port: int) -> None:
    """Request `/healthz` over a new connection; raise an error if that fails."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}")
    finally:
        connection.close()


def under_attack(
    port: int, attack: str, seconds: float, *options: str, ask: Callable[[int], object] = alive
) -> dict[str, Any]:
    """Send requests over new connections while an attack runs in its own process.

    Args:
        port: the service's port on 127.0.0.1.
        attack: its name in attacks.py.
        seconds: duration of the attack.
        options: further options of attacks.py.
        ask: sends a request to a port, and raises an error if it fails.

    Returns:
        the slowest answer in ms (None if a request failed; `/healthz` times out after 30 s), the number of answers, and
        the attackers' outcomes.
    """
    command = [sys.executable, str(Path(__file__).with_name("attacks.py")), attack, str(port)]
    process = subprocess.Popen([*command, "--seconds", str(seconds), *options], stdout=subprocess.PIPE, text=True)
    slowest, count = 0.0, 0
    while process.poll() is None:
        started = time.perf_counter()
        try:
            ask(port)
        except (OSError, http.client.HTTPException) as error:
            process.wait()
            return {"slowest_ms": None, "answers": count, "why": repr(error)}
        slowest, count = max(slowest, time.perf_counter() - started), count + 1
        time.sleep(0.02)
    assert process.stdout is not None
    return {"slowest_ms": round(1000 * slowest), "answers": count, "seen": json.load(process.stdout)}
