"""Counts and timings of the service, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The service's counts, in their own registry, so that two services in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "spectro_requests", "Answered requests.", ["path", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "spectro_request_seconds", "Time to answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.pending = Gauge("spectro_requests_pending", "Requests being answered.", registry=self.registry)
        self.batch = Histogram(
            "spectro_batch_size", "Pictures in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.labels = Counter("spectro_labels", "Predicted labels.", ["label"], registry=self.registry)


class Counting:
    """Counts the requests that pass through it.

    Args:
        app: answers them.
        metrics: counts them.
        known: paths that are counted by name; all others are counted as `other`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, known: frozenset[str]) -> None:
        self._app, self._metrics, self._known = app, metrics, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # if the application fails before it answers

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in self._known else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        started = time.perf_counter()
        with self._metrics.pending.track_inprogress():
            try:
                await self._app(scope, receive, counted)
            finally:
                self._metrics.requests.labels(path, method, str(status)).inc()
                self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
