"""A running service over the small world's checkpoint."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import uvicorn

from spectro.predict.predictor import Predictor
from spectro.serve.app import make_app
from spectro.serve.guard import Limits
from spectro.serve.metrics import Metrics
from spectro.serve.models import Models
from spectro.serve.site import add_page
from tests.conftest import REPOSITORY, World


@dataclass(frozen=True)
class Running:
    """A service, and where it is."""

    url: str
    models: Models
    metrics: Metrics


Start = Callable[..., "contextmanager[Running]"]


@pytest.fixture(scope="session")
def start(world: World) -> Start:
    """Starts services in threads."""

    @contextmanager
    def started(*, page: bool = False, keys: tuple[str, ...] = (), **limits: float) -> Iterator[Running]:
        metrics, taken = Metrics(), Limits(**limits)  # type: ignore[arg-type]
        folders = [world.checkpoint, REPOSITORY / "checkpoints/mobilenet-ravdess"]
        models = Models(
            folders,
            load=partial(Predictor, device="cpu", max_duration_s=taken.max_duration_s),
            max_batch=8,
            observe=metrics.batch.observe,
        )
        app = make_app(models, taken, metrics, keys=keys)
        if page:
            add_page(app)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                time.sleep(0.02)
            try:
                yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", models, metrics)
            finally:
                server.should_exit = True
                thread.join()

    return started


@pytest.fixture(scope="session")
def service(start: Start) -> Iterator[Running]:
    """A service for all tests that only ask."""
    with start() as running:
        yield running
