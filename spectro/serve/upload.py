"""Uploads, which stay in memory: no part of them touches the disk."""

import difflib
import logging
from collections.abc import Callable, Collection, Coroutine
from io import BytesIO
from typing import Any

import python_multipart
from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Receive

from spectro.serve.turns import unless_gone
from spectro.serve.words import HOW

logging.getLogger("python_multipart").setLevel(
    logging.ERROR
)  # it warns of each broken piece, so strangers could fill the log
FILE = "file"
GONE = 499  # nginx's status for this; nobody reads the answer


class InMemory(BytesIO):
    """A file in memory, with the attribute that starlette's UploadFile looks up."""

    _rolled = False

    def close(self) -> None:
        """Free the memory; a thread that still reads it for a client that disconnected finds its end, and stops."""
        self.truncate(0)


class Form:
    """A form whose only field is a file; parses its bytes as they arrive.

    Args:
        boundary: separates its parts.
    """

    def __init__(self, boundary: bytes) -> None:
        self._upload: UploadFile | None = None
        self._name, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._whole = False
        parts = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        callbacks: Any = {f"on_{part}": getattr(self, f"_on_{part}") for part in parts}
        self._parser = python_multipart.MultipartParser(boundary, callbacks)

    def write(self, content: bytes) -> None:
        """Parse more bytes.

        Raises:
            HTTPException: they are not a form, or the form has other fields.
        """
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise HTTPException(400, f"the form cannot be read: {HOW}") from error

    def content(self) -> FormData:
        """Return the form when all of it has arrived.

        Raises:
            HTTPException: it is incomplete.
        """
        if not self._whole:
            raise HTTPException(400, f"the form is incomplete: {HOW}")
        if self._upload is None:
            return FormData()
        self._upload.size = self._upload.file.tell()
        self._upload.file.seek(0)
        return FormData([(FILE, self._upload)])

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        field = _text(options.get(b"name", b""))
        if field != FILE:
            raise HTTPException(
                422,
                f"the form has a field {field!r}; only `file` is allowed, options are query parameters: ?{field}=...",
            )
        if self._upload is not None:
            raise HTTPException(400, "the form has more than one file; send each in its own request")
        self._upload = UploadFile(InMemory(), filename=_text(options.get(b"filename", b"upload")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._upload is not None
        self._upload.file.write(data[start:end])

    def _on_end(self) -> None:
        self._whole = True


class UploadRequest(Request):
    """A request whose form is parsed by `Form`."""

    def form(self, **_limits: Any) -> Any:
        """Read the form, once."""
        return self._read()

    async def _read(self) -> FormData:
        if self._form is None:
            kind, options = parse_options_header(self.headers.get("content-type"))
            self._form = FormData()
            if kind == b"multipart/form-data":
                form = Form(options.get(b"boundary", b""))
                while more := await self._more():
                    form.write(more)
                self._form = form.content()
        return self._form

    async def _more(self) -> bytes:
        """Return the next bytes of the body; none at its end."""
        while not self._stream_consumed:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(GONE, "the client disconnected")
            self._stream_consumed = not message.get("more_body", False)
            if body := message.get("body", b""):
                return bytes(body)
        return b""


class UploadRoute(APIRoute):
    """A route that takes an upload, refuses unknown options, and drops the work of clients that disconnect."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request."""
        handler = super().get_route_handler()
        known = [one.alias for one in self.dependant.query_params]
        takes_upload = bool(self.dependant.body_params)

        async def handle(request: Request) -> Response:
            _check_options([name for name, _ in request.query_params.multi_items()], known)
            if not takes_upload:
                return await handler(request)
            upload = UploadRequest(request.scope, request.receive)
            await upload.form()
            answer = await unless_gone(handler(upload), _disconnected(request.receive))
            return answer or Response(status_code=GONE)

        return handle


def _check_options(given: list[str], known: Collection[str]) -> None:
    """Refuse unknown and repeated options."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            hint = f"did you mean {near[0]}? The options are {', '.join(known)}" if near else "this address takes none"
            raise HTTPException(422, f"there is no option {name!r}; {hint}")
        if given.count(name) > 1:
            raise HTTPException(422, f"the option {name} is given {given.count(name)} times; give it once")


async def _disconnected(receive: Receive) -> None:
    """Return when the client, which has sent its whole request, disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
