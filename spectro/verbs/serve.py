"""The serve verb: the HTTP service and its web page."""

import gc
import importlib.util
import logging
import os
import socket
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from spectro.engines.base import EngineName, Precision
from spectro.errors import PredictionError
from spectro.model.locate import default_checkpoint
from spectro.predict.predictor import Predictor
from spectro.processes import threads
from spectro.schema import check_least
from spectro.serve.limits import Limits

KEYS = "SPECTRO_API_KEY"
NEEDED = ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")
OPEN_TO_ALL = (
    f"anyone who can reach this machine can use the service; set {KEYS} to require a key, or use --host 127.0.0.1"
)
SWITCH_S = 0.0005  # decoding threads yield to the answering thread sooner than after Python's default of 5 ms
OTHER_FILES = 256
"""Files that the process may need besides its connections."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Serve predictions over HTTP, with a web page.

    POST /v1/predict/wav, /v1/predict/image, /v1/explain and /v1/timeline take a multipart field `file`. GET
    /v1/model, /healthz, /metrics and /openapi.json describe the rest. The environment variable SPECTRO_API_KEY
    holds one key, or several separated by commas. If it is set, all paths except /healthz and the page's files
    require the header X-API-Key; the page asks for the key.

    Args:
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        others: more checkpoint folders; requests and the page select one by name.
        host: address to listen on; 0.0.0.0 for all.
        port: port to listen on; 0 for any free port.
        page: serve the web page.
        allowed_hosts: host names under which clients reach the service, besides localhost and `host`, as in the Host
            header: [emotion.example.org]. Pages from these hosts may use the service. [*] allows any.
        proxies: addresses or networks of proxies. Only their X-Forwarded-For and X-Forwarded-Proto are trusted.
        max_batch: pictures per batch; larger ones are hardly faster, and all their requests wait for them.
        renderers: processes that render uploads when several arrive at a time; -1 for one per core, 0 for threads.
        min_speech: give the label `no speech` if the probability of speech is below this, 0 to 1; 0 turns this off.
        limits: limits on requests.
        stop_s: time that running requests have to finish when the service stops, in seconds.
        device: cpu, cuda, ...; null uses a GPU if one is available.
        engine: inference engine; auto picks the fastest one installed (onnx and openvino are extras).
        precision: float32, or bfloat16 for more speed (torch, openvino); close calls are computed in float32 either
            way.
    """

    checkpoint: Path | None = None
    others: list[Path] = field(default_factory=list)
    host: str = "127.0.0.1"
    port: int = 7860
    page: bool = True
    allowed_hosts: list[str] = field(default_factory=list)
    proxies: list[str] = field(default_factory=list)
    max_batch: int = 8
    renderers: int = -1
    min_speech: float = 0.5
    limits: Limits = field(default_factory=Limits)
    stop_s: int = 8
    device: str | None = None
    engine: EngineName = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_least(self, PredictionError, max_batch=1, renderers=-1)
        if not 0 <= self.port < 65_536:
            raise PredictionError(f"port is {self.port}; it must lie between 0 and 65535")


def run(settings: ServeSettings) -> int:
    """Run the service until it is stopped; returns the exit code."""
    lacking = [name for name in NEEDED if not importlib.util.find_spec(name)]
    if lacking:
        raise PredictionError(f"the service needs {', '.join(lacking)}: install spectro[serve]")
    from spectro.serve.server import listen

    try:
        listener = listen(settings.host, settings.port)  # before the models load, which takes a while
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise PredictionError(
            f"cannot listen on port {settings.port} of {settings.host} ({reason}); choose others with --host and --port"
        ) from error
    with listener:
        return _serve(settings, listener)


def _serve(settings: ServeSettings, listener: socket.socket) -> int:
    from spectro.serve.app import make_app
    from spectro.serve.callers import Names, Proxies
    from spectro.serve.metrics import Metrics
    from spectro.serve.models import Models
    from spectro.serve.server import Server, allow_files
    from spectro.serve.site import add_page

    Proxies(settings.proxies)  # raises if they are invalid
    limits = settings.limits
    most = allow_files(limits.max_connections + OTHER_FILES) - OTHER_FILES
    limits = replace(limits, max_connections=max(1, min(limits.max_connections, most)))
    metrics = Metrics()
    models = Models(
        [settings.checkpoint or default_checkpoint(), *settings.others],
        load=partial(
            Predictor,
            device=settings.device,
            engine=settings.engine,
            precision=settings.precision,
            max_duration_s=limits.max_duration_s,
            min_speech=settings.min_speech,
        ),
        max_batch=settings.max_batch,
        observe=metrics.batch.observe,
    )
    keys = tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    names = Names(settings.host, settings.allowed_hosts)
    cores = threads()
    renderers = settings.renderers if settings.renderers >= 0 else cores if cores > 1 else 0
    app = make_app(models, limits, metrics, keys=keys, names=names, renderers=renderers)
    if settings.page:
        add_page(app)
    host, port = listener.getsockname()[:2]
    what = "web page and service" if settings.page else "service"
    print(f"{what} at http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
    if not keys and not ip_address(host).is_loopback:
        print(f"warning: {OPEN_TO_ALL}", file=sys.stderr, flush=True)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # the networks' objects; searching all of them for garbage would hold up every request for 0.3 s
    try:
        Server(app, limits, proxies=settings.proxies, stop_s=settings.stop_s).run(sockets=[listener])
    finally:
        gc.unfreeze()  # some packages complain of what is left when Python ends
    return 0
