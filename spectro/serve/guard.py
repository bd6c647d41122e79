"""Checks that a request passes before it is handled: host name, key, origin, load, size, pace.

Pure ASGI, in front of everything else, so that it sees every request first, and every byte of it.
"""

import asyncio
import time
from collections import Counter as Counts
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectro.serve.callers import Keys, Names, share_of
from spectro.serve.limits import MEBIBYTE, Limits
from spectro.serve.turns import CLIENT
from spectro.serve.words import problem, said

HEALTH = "/healthz"
TIMELINE, CLIPS = "/v1/timeline", "/v1/predict/"
OPEN, OPEN_FOLDER = (HEALTH, "/"), "/static/"
"""Paths that need no key: the health check, and the page, which asks for the key, with its files."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}


class Guard:
    """Refuses requests before their body is read, and bodies that are too large, too slow, or stop arriving.

    Args:
        app: answers the other requests.
        limits: what is accepted.
        keys: API keys; all paths but `/healthz` and the page need one of them; none for an open service.
        names: host names of the service.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: tuple[str, ...] = (), names: Names | None = None) -> None:
        self._app, self._limits = app, limits
        self._keys, self._names = Keys(keys, limits.max_guesses), names or Names()
        self._pending: Counts[str] = Counts()
        self._timelines: Counts[str] = Counts()
        self._bytes: Counts[str] = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = share_of(scope["client"][0]) if scope.get("client") else ""
        CLIENT.set(client)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        largest_mb = self._limits.max_mb if scope["path"].startswith(CLIPS) else self._limits.max_timeline_mb
        refusal = self._stranger(scope, client) or self._no_room(scope, client, largest_mb)
        if refusal is not None:
            await refusal(scope, receive, marked)
        elif scope["path"].startswith("/v1/"):
            await self._counted(scope, receive, marked, client, largest_mb)
        else:
            await self._app(scope, receive, marked)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, client: str, largest_mb: float) -> None:
        body = _Body(self, receive, client, largest_mb)
        self._pending[client] += 1
        self._timelines[client] += scope["path"] == TIMELINE
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._pending[client] -= 1
            self._timelines[client] -= scope["path"] == TIMELINE
            self._bytes[client] -= body.received
            for counts in (self._pending, self._timelines, self._bytes):
                if not counts[client]:
                    del counts[client]

    def _stranger(self, scope: Scope, client: str) -> JSONResponse | None:
        """Return the refusal of a client with a wrong host name, key or origin; None if it may use the service."""
        headers, path = Headers(scope=scope), scope["path"]
        if path == HEALTH:
            return None
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._names.knows(host):
            return problem(
                421,
                f"{said(host)[:100]!r} is not a known name of this service; if it should be, add it to --allowed_hosts",
            )
        if self._keys:
            return None if path in OPEN or path.startswith(OPEN_FOLDER) else self._keys.refusal(headers, client)
        if origin is not None and scope["method"] not in SAFE_METHODS and not self._names.sent(origin, host):
            return problem(
                403, "pages of other sites may not use this service; to allow one, add its host to --allowed_hosts"
            )
        return None

    def _no_room(self, scope: Scope, client: str, largest_mb: float) -> JSONResponse | None:
        """Return the refusal of a request that is too large or one too many; None if there is room for it."""
        path, limits = scope["path"], self._limits
        if not path.startswith("/v1/"):
            return None
        if _length(Headers(scope=scope)) > largest_mb * MEBIBYTE:
            return problem(413, _too_large(largest_mb))
        if self._pending[client] >= limits.max_per_client:
            return problem(429, f"more than {limits.max_per_client} requests at a time", {"Retry-After": "1"})
        if self._pending.total() >= limits.max_pending:
            return problem(503, "the service is busy; try again", {"Retry-After": "1"})
        if path == TIMELINE and self._timelines[client] >= limits.max_timelines_per_client:
            return problem(
                429, f"more than {limits.max_timelines_per_client} timelines at a time", {"Retry-After": "30"}
            )
        if path == TIMELINE and self._timelines.total() >= limits.max_timelines:
            return problem(503, "other timelines are being computed; try again", {"Retry-After": "30"})
        return None

    def take(self, client: str, count: int) -> None:
        """Count bytes that have arrived in memory.

        Raises:
            HTTPException: there are too many.
        """
        self._bytes[client] += count
        largest = self._limits.max_memory_mb * MEBIBYTE
        if self._bytes.total() > largest:
            raise HTTPException(503, "other uploads fill the memory; try again", {"Retry-After": "5"})
        if self._bytes[client] > largest / 2:
            raise HTTPException(
                429, f"your uploads in progress exceed {largest / 2 / MEBIBYTE:g} MiB; wait for one to finish"
            )

    def time_left_s(self, started: float, received: int) -> float:
        """Return the time that the next bytes of an upload have to arrive, in seconds."""
        due = started + self._limits.idle_s + received / (self._limits.min_kb_s * 1024)
        return min(self._limits.idle_s, due - time.monotonic())


class _Body:
    """A request's body; counts its bytes, and limits the wait for more."""

    def __init__(self, guard: Guard, receive: Receive, client: str, largest_mb: float) -> None:
        self._guard, self._receive, self._client, self._largest_mb = guard, receive, client, largest_mb
        self._started, self._whole = time.monotonic(), False
        self.received = 0

    async def receive(self) -> Message:
        """Return the next message."""
        if self._whole:
            return await self._receive()  # only the end of the connection can follow, at any time
        left_s = self._guard.time_left_s(self._started, self.received)
        try:
            async with asyncio.timeout(left_s):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, "the upload arrived too slowly, or not at all") from error
        count = len(message.get("body", b""))
        self.received += count
        self._whole = not message.get("more_body", False)
        self._guard.take(self._client, count)
        if self.received > self._largest_mb * MEBIBYTE:
            raise HTTPException(413, _too_large(self._largest_mb))
        return message


def _length(headers: Mapping[str, str]) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _too_large(largest_mb: float) -> str:
    return f"the upload is larger than {largest_mb:g} MiB"
