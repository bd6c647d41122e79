"""Error messages of the service in place of its framework's: each is one sentence."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from spectro.errors import CheckpointError, SpectroError
from spectro.files import MESSAGE, printable

SENTENCES = {
    "missing": "is missing",
    "less_than": "is {input}; it must be less than {lt:g}",
    "less_than_equal": "is {input}; it must be at most {le:g}",
    "greater_than": "is {input}; it must be more than {gt:g}",
    "greater_than_equal": "is {input}; it must be at least {ge:g}",
    "finite_number": "is {input}; it must be a finite number",
    "float_parsing": "is {input!r}; it must be a number",
    "int_parsing": "is {input!r}; it must be a whole number",
    "bool_parsing": "is {input!r}; it must be true or false",
    "string_too_long": "is longer than {max_length} characters",
}
HOW = "send the recording as the field `file` of a multipart/form-data form, as curl -F file=@clip.wav does"
LOG = logging.getLogger("uvicorn.error")
FAILED = "the service failed; its log says why"


def said(text: str) -> str:
    """Return text that may contain input of strangers, made printable and short."""
    return printable(text, MESSAGE)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as a JSON response."""
    return JSONResponse({"detail": said(detail)}, status, headers)


def as_bytes(status: int, detail: str) -> bytes:
    """Return the same answer as raw bytes of HTTP that close the connection."""
    body = json.dumps({"detail": detail}).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def add_words(app: FastAPI) -> None:
    """Make an application answer every error with a sentence."""

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(422, "; ".join(_sentence(one) for one in error.errors()))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
            detail = f"there is nothing at {request.url.path}; /openapi.json lists all addresses"
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "another method")
            detail = f"{request.method} is not supported at {request.url.path}; use {allowed}"
        return problem(error.status_code, detail, error.headers)

    async def unusable(_request: Request, error: Exception) -> Response:
        if isinstance(error, CheckpointError):  # its text names a folder of this machine
            LOG.error("%s", printable(str(error), MESSAGE))
            return problem(500, FAILED)
        return problem(500, str(error))

    async def failed(_request: Request, _error: Exception) -> Response:
        return problem(500, FAILED)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(SpectroError, unusable)
    app.add_exception_handler(Exception, failed)


def _sentence(error: Mapping[str, Any]) -> str:
    """Return an error of pydantic as a sentence."""
    place = "/".join(str(part) for part in error["loc"][1:]) or "the request"
    if place == "file":
        return f"file is missing: {HOW}"
    sentence = SENTENCES.get(error["type"])
    if sentence is None:
        return f"{place}: {error['msg']}"
    return f"{place} " + sentence.format(input=error.get("input"), **error.get("ctx", {}))
