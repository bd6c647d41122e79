"""A service in a process of its own, for the benchmarks."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
        """Its memory now, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def running(*options: str) -> Iterator[Server]:
    """Start `spectro serve` with options on a free port; stop it when the block ends."""
    command = [sys.executable, "-m", "spectro", "serve", "--port", "0", "--page", "false", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    if "://" not in line:
        raise RuntimeError(f"the service did not start: {line}{process.stderr.read()}")
    host, _, port = line.rpartition("://")[2].strip().rpartition(":")
    try:
        yield Server(host, int(port), process)
    finally:
        process.terminate()
        process.wait()
