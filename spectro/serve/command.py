"""The serve verb: the HTTP service and its web page."""

import importlib.util
import os
import socket
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from spectro.errors import PredictionError
from spectro.predict.engines import EngineName, Precision
from spectro.predict.predictor import Predictor, default_checkpoint
from spectro.serve.guard import Limits

KEYS = "SPECTRO_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Serve predictions over HTTP, with a web page.

    POST /v1/predict/wav, /v1/predict/image, /v1/explain and /v1/timeline take a multipart field `file`; GET /v1/model,
    /healthz, /metrics and /openapi.json tell the rest. The environment's SPECTRO_API_KEY, one key or several with
    commas between, closes /v1, /metrics and /openapi.json to all who do not send one as X-API-Key; the page asks for
    it.

    Args:
        checkpoint: the checkpoint folder that answers; null for the shipped one.
        others: further checkpoint folders, which requests and the page can choose by name.
        host: address to listen on; 0.0.0.0 for all.
        port: port to listen on; 0 for any that is free.
        page: serve the web page.
        max_batch: pictures that the network takes at a time.
        limits: what is taken.
        stop_s: time that requests have to end when the service is told to stop, in seconds.
        device: cpu, cuda, ...; null takes a GPU where there is one.
        engine: what computes the network: torch, onnx or openvino (extras), or auto for the fastest that is installed.
        precision: float32, or bfloat16 for more speed and less exact probabilities, but for close calls (torch,
            openvino).
    """

    checkpoint: Path | None = None
    others: list[Path] = field(default_factory=list)
    host: str = "127.0.0.1"
    port: int = 7860
    page: bool = True
    max_batch: int = 32
    limits: Limits = field(default_factory=Limits)
    stop_s: int = 8
    device: str | None = None
    engine: EngineName = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise PredictionError(f"max_batch is {self.max_batch}; at least 1 is needed")
        if not 0 <= self.port < 65_536:
            raise PredictionError(f"port is {self.port}; it must lie between 0 and 65535")


def run(settings: ServeSettings) -> int:
    """Run the verb until it is told to stop; returns its exit code."""
    lacking = [name for name in ("fastapi", "uvicorn", "prometheus_client") if not importlib.util.find_spec(name)]
    if lacking:
        raise PredictionError(f"the service needs {', '.join(lacking)}: install spectro[serve]")
    import uvicorn

    from spectro.serve.app import make_app
    from spectro.serve.metrics import Metrics
    from spectro.serve.models import Models
    from spectro.serve.server import Server
    from spectro.serve.site import add_page

    metrics = Metrics()
    models = Models(
        [settings.checkpoint or default_checkpoint(), *settings.others],
        load=partial(
            Predictor,
            device=settings.device,
            engine=settings.engine,
            precision=settings.precision,
            max_duration_s=settings.limits.max_duration_s,
        ),
        max_batch=settings.max_batch,
        observe=metrics.batch.observe,
    )
    keys = tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    app = make_app(models, settings.limits, metrics, keys=keys)
    if settings.page:
        add_page(app)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=2048) as listener:
        host, port = listener.getsockname()[:2]
        what = "web page and service" if settings.page else "service"
        print(f"{what} at http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            app,
            limit_concurrency=4 * settings.limits.max_pending,
            timeout_graceful_shutdown=settings.stop_s,
            log_level="warning",
            server_header=False,
        )
        Server(config).run(sockets=[listener])
    return 0
