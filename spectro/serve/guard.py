"""What a request has to pass before it is worked on: key, room, size, pace. Pure ASGI, so that it sees every byte."""

import asyncio
import hmac
from collections import Counter as Counts
from collections.abc import Mapping
from dataclasses import dataclass, fields

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectro.errors import PredictionError

MEBIBYTE = 2**20
TIMELINE = "/v1/timeline"
KEYED = ("/v1/", "/metrics", "/openapi.json")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service takes.

    Args:
        max_mb: largest upload of a clip or picture, in MiB.
        max_timeline_mb: largest upload of a long recording, in MiB.
        max_duration_s: longest clip, in seconds.
        max_timeline_s: longest recording for a timeline, in seconds.
        max_pending: requests that are worked on or wait, over all clients; more get 503.
        max_per_client: the same for each client address; more get 429.
        max_timelines: timelines that are made or wait; more get 503. One is made at a time.
        idle_s: an upload that brings nothing for this long is given up, in seconds.
    """

    max_mb: float = 32.0
    max_timeline_mb: float = 1024.0
    max_duration_s: float = 60.0
    max_timeline_s: float = 4 * 3600.0
    max_pending: int = 256
    max_per_client: int = 64
    max_timelines: int = 4
    idle_s: float = 15.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise PredictionError(f"limits.{one.name} is {getattr(self, one.name)}; it must be positive")


class Guard:
    """Refuses requests before their body is read, and bodies that grow too large or stop coming.

    Args:
        app: who answers the others.
        limits: what is taken.
        keys: API keys, one of which `/v1/`, `/metrics` and `/openapi.json` need; none for an open service.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: tuple[str, ...] = ()) -> None:
        self._app, self._limits, self._keys = app, limits, keys
        self._pending: Counts[str] = Counts()
        self._timelines = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        largest_mb = self._limits.max_mb if path.startswith("/v1/predict") else self._limits.max_timeline_mb
        refusal = self._refusal(scope, headers, largest_mb)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if not path.startswith("/v1/"):
            await self._app(scope, self._watched(receive, largest_mb), send)
            return
        client = scope["client"][0] if scope.get("client") else ""
        self._pending[client] += 1
        self._timelines += path == TIMELINE
        try:
            await self._app(scope, self._watched(receive, largest_mb), send)
        finally:
            self._timelines -= path == TIMELINE
            self._pending[client] -= 1
            self._pending += Counts()  # forgets clients that have nothing pending

    def _refusal(self, scope: Scope, headers: Mapping[str, str], largest_mb: float) -> JSONResponse | None:
        path = scope["path"]
        if self._keys and path.startswith(KEYED) and not self._knows(headers):
            return _problem(401, "an API key is needed: send it as X-API-Key", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > largest_mb * MEBIBYTE:
            return _problem(413, _too_large(largest_mb), {"Connection": "close"})
        if not path.startswith("/v1/"):
            return None
        client = scope["client"][0] if scope.get("client") else ""
        if self._pending[client] >= self._limits.max_per_client:
            return _problem(429, f"more than {self._limits.max_per_client} requests at a time", {"Retry-After": "1"})
        if self._pending.total() >= self._limits.max_pending:
            return _problem(503, "the service is busy; try again", {"Retry-After": "1"})
        if path == TIMELINE and self._timelines >= self._limits.max_timelines:
            return _problem(503, "other timelines are being made; try again", {"Retry-After": "30"})
        return None

    def _knows(self, headers: Mapping[str, str]) -> bool:
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        return any(hmac.compare_digest(given.encode(), key.encode()) for key in self._keys)

    def _watched(self, receive: Receive, largest_mb: float) -> Receive:
        """Count what comes, and do not wait for ever for more."""
        received = 0
        whole = False

        async def watched() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()  # nothing but the end of the connection comes now, whenever it comes
            try:
                message = await asyncio.wait_for(receive(), self._limits.idle_s)
            except TimeoutError as error:
                raise HTTPException(408, f"nothing came for {self._limits.idle_s:g} s") from error
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > largest_mb * MEBIBYTE:
                raise HTTPException(413, _too_large(largest_mb))
            return message

        return watched


def _too_large(largest_mb: float) -> str:
    return f"the upload is larger than {largest_mb:g} MiB"


def _problem(status: int, detail: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
