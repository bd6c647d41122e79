"""Files that are there whole or not at all, and names that can be printed.

The only place where a file comes to its final name: it is written beside it and then moved, so that a kill at any
moment leaves either the old file or the new one.
"""

import hashlib
import json
import math
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".part"
_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = 80
FOREIGN_JSON_BYTES, FOREIGN_JSON_DEPTH = 2**21, 16


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; move it there when the block ends without an error."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs; yields whether nobody else holds it.

    It is free again however a process ends. Where the system has no such locks, it is always free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_foreign_json(path: Path) -> Any:
    """Return the content of a JSON file that anyone may have written: short, shallow, and JSON in the strict sense.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or has NaN or infinite numbers, or text that UTF-8 cannot hold; or it is larger than
            `FOREIGN_JSON_BYTES` or nested deeper than `FOREIGN_JSON_DEPTH`, which nothing of ours is.
    """
    with path.open("rb") as file:
        content = file.read(FOREIGN_JSON_BYTES + 1)
    if len(content) > FOREIGN_JSON_BYTES:
        raise ValueError(f"it is larger than {FOREIGN_JSON_BYTES} bytes")
    try:
        found = json.loads(content.decode(), parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_plain(found, FOREIGN_JSON_DEPTH)
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _check_plain(value: Any, depth: int) -> None:
    """Raise ValueError if JSON is nested deeper than `depth`, or holds text that UTF-8 cannot (a ValueError itself)."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError("it is nested too deeply")
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_plain(one, depth - 1)


def fingerprint(content: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def quoted(value: Any) -> str:
    """Return how any value is quoted in a message: printable, and at most about a line long."""
    return _QUOTED.repr(value)


def printable(path: str | os.PathLike[str]) -> str:
    """Return `path` as text that any UTF-8 file or terminal can hold: bytes that are not UTF-8 become \\\\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
