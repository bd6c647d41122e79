"""The web page: static files that use the service's API. Nothing on it comes from another host.

The page is a client like any other, without routes of its own. Its Content-Security-Policy keeps browsers from running,
loading or contacting anything but this service.
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(__file__).parent / "static"
WAVEFORM_STYLE = "'sha256-7Wn/5ghbhb9U5yM332FZpa4jDUilNGJdZ87eJ6XZFBA='"
"""Hash of the only style sheet that wavesurfer.js puts into its shadow tree, at the height that player.js sets. If a
browser refuses it after an update, its console shows the new hash."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {WAVEFORM_STYLE}",
        "img-src 'self' data: blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # cached but revalidated, so that page and service have the same version
}


class _Files(StaticFiles):
    """Serves the page's files with its headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/static/`."""
    files = _Files(directory=FILES)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.router.routes += [Route("/", index, include_in_schema=False), Mount("/static", files)]
