"""A local file server that records requests and can break off early."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files`; breaks off after `limit` bytes if that is set, and records the requests in `asked`."""

    files: dict[str, bytes]
    limit: int | None
    asked: list[tuple[str, str | None]]

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if self.server.limit is None else min(len(content), start + self.server.limit)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve files while the block runs.

    Args:
        files: content by path.
    """
    server = FileServer(("127.0.0.1", 0), Handler)
    server.files, server.limit, server.asked = files, None, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds between checks for shutdown
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
