"""The HTTP server: uvicorn with httptools, and the limits that they lack.

It limits connections in total and per client, the size of a header, the time for it, the time for an unread answer, and
the number of chunks in a body. It shuts down without losing a request. docs/service.md compares other servers.
"""

import asyncio
import selectors
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spectro.serve.callers import Proxies, share_of
from spectro.serve.limits import Limits
from spectro.serve.words import as_bytes

HEADER_BYTES = 16 * 1024  # of a request, or between the parts of its body
FREE_CHUNKS, CHUNK_BYTES = 64, 512  # each chunk costs some microseconds; after the first 64, tiny ones are refused
CHECK_TICKS = 5  # one tick is 0.1 s
LINGER_S = 1.0  # kept-alive connections are still served for this long after the service is told to stop
CLOSE = (b"connection", b"close")
HANGUP = getattr(signal, "SIGHUP", None)  # missing on Windows


class Connection(HttpToolsProtocol):
    """A client's connection.

    Args:
        doors: decides which connections stay open.
        given: arguments from uvicorn.
    """

    def __init__(self, doors: "Doors", **given: Any) -> None:
        super().__init__(**given)
        self._doors, self._since = doors, self.loop.time()
        self._unsent, self._unsent_since = 0, 0.0
        self._reading_body = False
        self._overhead = 0  # bytes that arrived since the last request or the last part of a body
        self._chunks = self._chunked_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waited_since(self) -> float | None:
        """The loop's time at which the wait for a request's header began; None if there is no such wait."""
        return self._since if self.idle and not self._reading_body else None

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
        """Parse data: no more of a header than is allowed, and nothing after a request that is not answered yet."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        while rest and not self.transport.is_closing():
            if not self._reading_body and not self.idle:
                return self.last()
            size = HEADER_BYTES - self._overhead
            piece, rest = rest[:size], rest[size:]
            self._overhead += len(piece)
            try:
                self.parser.feed_data(piece)
            except HttpParserUpgrade as offer:
                rest = memoryview(b"".join((self._plain(), piece[offer.args[0] :], rest)))
            except HttpParserError:
                self._refuse(400, "the request is not valid HTTP/1.1, or its body comes in tiny chunks")
            else:
                if self._overhead >= HEADER_BYTES:
                    self._refuse(431, f"the request's header is longer than {HEADER_BYTES // 1024} KiB")
        return None

    def _plain(self) -> bytes:
        """Return the header of a request that offers another protocol, such as HTTP/2, without the offer."""
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        return first + b"".join(b"%s:%s\r\n" % one for one in self.headers if one[0] != b"upgrade") + b"\r\n"

    def on_message_begin(self) -> None:
        """Begin a request, unless another one is not answered yet; raising an error stops the parser for good."""
        if not self.idle:
            raise ValueError("pipelined")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; those after a body are ignored."""
        if not self._reading_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer a request, unless its version or host is unclear."""
        version, hosts = self.parser.get_http_version(), sum(name == b"host" for name, _ in self.headers)
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise ValueError("malformed")
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("not a proxy")
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._reading_body, self._overhead = True, 0
            self._chunks = self._chunked_bytes = 0

    def on_chunk_header(self) -> None:
        """Refuse bodies in tiny chunks."""
        self._chunks += 1
        if self._chunks > FREE_CHUNKS + self._chunked_bytes // CHUNK_BYTES:
            raise ValueError("tiny chunks")

    def on_body(self, body: bytes) -> None:
        """Note a part of the body."""
        self._chunked_bytes += len(body)
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of the body."""
        self._overhead = 0
        if self._reading_body:
            self._reading_body = False
            super().on_message_complete()

    def last(self) -> None:
        """Make the pending answer the last one of the connection."""
        if not self.idle:
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
        elif self.idle and now - self._since > idle_s:  # answered, but the body keeps coming
            self.abort()

    def _refuse(self, status: int, detail: str) -> None:
        """Refuse a request and close; ignore what follows one that is not answered yet."""
        if not self._reading_body and not self.idle:
            return self.last()
        if self.idle or not self.cycle.response_started:
            self.transport.write(as_bytes(status, detail))
        return self.transport.close()


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
