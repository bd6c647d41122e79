"""The HTTP server: uvicorn with h11, which limits the size of headers, and the limits that it lacks.

It limits connections in total and per client, the time for a header, the time for an unread answer, and the number of
chunks in a body. It shuts down without losing a request. docs/service.md compares other servers.
"""

import asyncio
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from spectro.serve.callers import Proxies, share_of
from spectro.serve.limits import Limits
from spectro.serve.words import as_bytes

HEADER_BYTES = 16 * 1024
PIECE_BYTES = 8 * 1024  # of a header, parsed at a time, so that it never gets much longer than allowed
FREE_CHUNKS, CHUNK_BYTES = 64, 512  # each chunk costs some microseconds; after the first 64, tiny ones are refused
CHECK_TICKS = 5  # one tick is 0.1 s
LINGER_S = 1.0  # kept-alive connections are still served for this long after the service is told to stop
CLOSE = (b"connection", b"close")
HANGUP = getattr(signal, "SIGHUP", None)  # missing on Windows


class _Parser(h11.Connection):
    """h11's parser; also refuses bodies in tiny chunks."""

    _chunks, _chunked_bytes = 0, 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunked_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._chunked_bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._chunked_bytes // CHUNK_BYTES:
                raise h11.RemoteProtocolError("tiny chunks", 400)
        return event


class Connection(H11Protocol):
    """A client's connection.

    Args:
        doors: decides which connections stay open.
        given: arguments from uvicorn.
    """

    def __init__(self, doors: "Doors", **given: Any) -> None:
        super().__init__(**given)
        self.conn = _Parser(h11.SERVER, HEADER_BYTES)
        self._doors, self._since = doors, self.loop.time()
        self._unsent, self._unsent_since = 0, 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waited_since(self) -> float | None:
        """The loop's time at which the wait for a request's header began; None if there is no such wait."""
        return self._since if self.conn.their_state is h11.IDLE else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept or refuse a client."""
        super().connection_made(transport)
        self._doors.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._doors.leave(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close at once."""
        self._doors.leave(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse data: headers in pieces, and nothing that follows a request which is not answered yet."""
        while data and self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            super().data_received(data[:PIECE_BYTES])
            data = data[PIECE_BYTES:]
        if not data or self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            super().data_received(data)
        else:
            self.last()

    def last(self) -> None:
        """Make the pending answer the last one of the connection."""
        if not self.idle:
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE]
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close if idle; otherwise mark the pending answer as the last."""
        if self.idle and not self.transport.is_closing():
            super().shutdown()
        else:
            self.last()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse malformed HTTP; uvicorn calls this while it handles h11's error."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._refuse(431, f"the request's header is longer than {HEADER_BYTES // 1024} KiB")
        else:
            self._refuse(400, "the request is not valid HTTP/1.1, or its body comes in tiny chunks")

    def check(self, now: float, header_s: float, idle_s: float) -> None:
        """Close the connection if the client has kept it waiting for too long.

        Args:
            now: the loop's time.
            header_s: time for a header to arrive, in seconds.
            idle_s: time that the client may stop reading an answer, or keep sending a refused body, in seconds.
        """
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        if unsent and now - self._unsent_since > idle_s:
            self.abort()
        elif self.transport.is_closing():
            return
        elif self.waited_since is not None:
            if now - self.waited_since > header_s:
                self._refuse(408, f"the request's header did not arrive within {header_s:g} s")
        elif self.conn.our_state is h11.DONE and now - self._since > idle_s:  # answered, but the body keeps coming
            self.abort()

    def _refuse(self, status: int, detail: str) -> None:
        if self.idle or not self.cycle.response_started:
            self.transport.write(as_bytes(status, detail))
        self.transport.close()


class Doors:
    """Limits the number of connections, in total and for each client that is not a proxy.

    If there are too many, the one that has waited longest for a request is closed, so that silent ones lock nobody out.

    Args:
        limits: maximum numbers and times.
        proxies: addresses or networks of proxies, from which many clients come.
    """

    def __init__(self, limits: Limits, proxies: Sequence[str]) -> None:
        self._limits, self._proxies = limits, Proxies(proxies)
        self._all: set[Connection] = set()
        self._by_client: dict[str, set[Connection]] = {}

    def enter(self, connection: Connection) -> None:
        """Register a connection; close another one, or this one, if there are too many."""
        address = connection.client[0] if connection.client else ""
        mine = self._by_client.setdefault(share_of(address), set())
        mine.add(connection)
        self._all.add(connection)
        if len(mine) > self._limits.max_connections_per_client and address not in self._proxies:
            _close_one(mine, connection)
        elif len(self._all) > self._limits.max_connections:
            _close_one(self._all, connection)

    def leave(self, connection: Connection) -> None:
        """Forget a connection."""
        client = share_of(connection.client[0]) if connection.client else ""
        self._all.discard(connection)
        mine = self._by_client.get(client, set())
        mine.discard(connection)
        if not mine:
            self._by_client.pop(client, None)

    def check(self, now: float) -> None:
        """Close connections whose client has kept them waiting for too long."""
        for connection in list(self._all):
            connection.check(now, self._limits.header_s, self._limits.idle_s)


def _close_one(among: set[Connection], newest: Connection) -> None:
    waiting = [(since, id(one), one) for one in among if one is not newest and (since := one.waited_since) is not None]
    (min(waiting)[2] if waiting else newest).abort()


class Server(uvicorn.Server):
    """uvicorn with these limits.

    Args:
        app: the application.
        limits: what is accepted.
        proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
        stop_s: time that running requests get when the service stops, in seconds.
    """

    def __init__(self, app: ASGIApp, limits: Limits, *, proxies: Sequence[str] = (), stop_s: int = 8) -> None:
        self._doors = Doors(limits, proxies)
        protocol: Any = partial(Connection, self._doors)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                proxy_headers=bool(proxies),
                forwarded_allow_ips=list(proxies),
                timeout_graceful_shutdown=stop_s,
                log_config=None,  # uvicorn's closes all handlers of the process; absl's then close their streams
                log_level="error",
                access_log=False,
                server_header=False,
            )
        )

    async def on_tick(self, counter: int) -> bool:
        """Check the connections on every fifth tick; uvicorn ticks ten times a second."""
        if counter % CHECK_TICKS == 0:
            self._doors.check(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down gracefully on SIGHUP, too, unless the parent process ignores it, as nohup does."""
        main = threading.current_thread() is threading.main_thread()
        if not main or HANGUP is None or signal.getsignal(HANGUP) == signal.SIG_IGN:
            with super().capture_signals():
                yield
            return
        original = signal.signal(HANGUP, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(HANGUP, original)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connections, answer requests on open ones and mark each answer as the last, then stop."""
        for _ in range(100):  # accept pending connections, which closing the listener would reset
            if not _knocked(sockets or []):
                break
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        connections: set[Any] = self.server_state.connections
        for connection in list(connections):
            connection.last()
        end = asyncio.get_running_loop().time() + LINGER_S
        while connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def _knocked(listeners: Sequence[socket.socket]) -> bool:
    """Return whether a connection is waiting to be accepted."""
    with selectors.DefaultSelector() as selector:
        for one in listeners:
            selector.register(one, selectors.EVENT_READ)
        return bool(listeners) and bool(selector.select(0))


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: the address is in use, does not belong to this machine, or is not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def allow_files(count: int) -> int:
    """Raise the process's limit on open files up to `count`, as far as the system allows; returns the limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return count if soft == resource.RLIM_INFINITY else soft
