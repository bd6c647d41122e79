"""A running service with the checkpoint of the small test world."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI

from spectro.predict.predictor import Predictor
from spectro.serve.app import make_app
from spectro.serve.callers import Names
from spectro.serve.guard import Guard
from spectro.serve.limits import Limits
from spectro.serve.metrics import Metrics
from spectro.serve.models import Models
from spectro.serve.server import Server, listen
from spectro.serve.site import add_page
from tests.conftest import REPOSITORY, World


@dataclass(frozen=True)
class Running:
    """A running service and its address."""

    url: str
    port: int
    models: Models
    metrics: Metrics
    app: FastAPI
    server: Server

    @property
    def guard(self) -> Guard:
        """The service's guard."""
        found: Any = self.app.middleware_stack
        while not isinstance(found, Guard):
            found = found._app if hasattr(found, "_app") else found.app
        return found

    def pending(self) -> float | None:
        """The number of requests in progress."""
        return self.metrics.registry.get_sample_value("spectro_requests_pending")

    def connections(self) -> int:
        """The number of open connections."""
        return len(self.server._doors._all)

    def bytes_in_memory(self) -> int:
        """The bytes of uploads in memory."""
        return self.guard._bytes.total()

    def connected(self, address: str = "127.0.0.1") -> socket.socket:
        """A new connection from an address."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(address, 0))

    @staticmethod
    def until(happened: Callable[[], bool]) -> None:
        """Wait until something has happened."""
        deadline = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def ask(running: Running, request: bytes, address: str = "127.0.0.1") -> bytes:
    """Send raw bytes from an address; returns the start of the answer."""
    with running.connected(address) as connection:
        connection.sendall(request)
        return connection.recv(4096)


Start = Callable[..., "contextmanager[Running]"]


@pytest.fixture(scope="session")
def start(world: World) -> Start:
    """Starts services in threads."""

    @contextmanager
    def started(
        *,
        page: bool = False,
        keys: tuple[str, ...] = (),
        names: Names | None = None,
        proxies: tuple[str, ...] = (),
        **limits: float,
    ) -> Iterator[Running]:
        metrics, taken = Metrics(), Limits(**limits)  # type: ignore[arg-type]
        folders = [world.checkpoint, REPOSITORY / "checkpoints/mobilenet-ravdess"]
        models = Models(
            folders,
            load=partial(Predictor, device="cpu", max_duration_s=taken.max_duration_s),
            max_batch=8,
            observe=metrics.batch.observe,
        )
        service = make_app(models, taken, metrics, keys=keys, names=names)
        if page:
            add_page(service)
        with listen("127.0.0.1", 0) as listener:
            server = Server(service, taken, proxies=proxies, stop_s=5)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            port = listener.getsockname()[1]
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            try:
                yield Running(f"http://127.0.0.1:{port}", port, models, metrics, service, server)
            finally:
                server.should_exit = True
                thread.join()

    return started


@pytest.fixture(scope="session")
def service(start: Start) -> Iterator[Running]:
    """A shared service for tests that only send requests."""
    with start() as running:
        yield running
