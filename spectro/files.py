"""Atomic file writes, locks, file signatures, and names that are safe to print.

All files get their final name here: each is written to a temporary file in the same folder and then moved, so that a
kill at any moment leaves either the old file or the new one. Files that grow use `Appended`.
"""

import errno
import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout
from isal import isal_zlib
from platformdirs import user_cache_path

from spectro.errors import SpectroError

TEMPORARY_SUFFIX = ".part"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.part", re.DOTALL)
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Disk errors on writing; the system does not say which file they concern."""

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Characters that a terminal, an editor or a page obeys or hides: controls, direction marks, separators."""
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
SHOWN = 300  # characters of untrusted text that a message shows
MESSAGE = 1000  # maximum characters of a message

Signature: TypeAlias = tuple[int, int, int, int]
_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = 80
FOREIGN_JSON_BYTES, FOREIGN_JSON_DEPTH = 2**25, 16  # the names of 100,000 speakers fit


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and move it to `path` when the block ends without an error.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with _named(path, temporary):
            yield temporary
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make a disk error name the file that the user knows."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno in _STORAGE
        if unnamed or (temporary is not None and error.filename == str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class Appended:
    """A file that grows by whole pieces: a piece that could not be written in full is removed.

    Args:
        path: the file's final path, which errors name.
        place: an initial path, where the file starts empty; None appends to `path`.
    """

    def __init__(self, path: Path, place: Path | None = None) -> None:
        self._path = path
        self._stream = (place or path).open("ab" if place is None else "wb", buffering=0)
        self._size = self._stream.seek(0, os.SEEK_END)

    def write(self, text: str) -> int:
        """Append text as UTF-8; the operating system has it on return."""
        rest = memoryview(text.encode())
        size = self._size + len(rest)
        try:
            with _named(self._path):
                while rest:
                    rest = rest[self._stream.write(rest) or 0 :]
        except OSError:
            self._stream.truncate(self._size)
            raise
        self._size = size
        return len(text)

    def sync(self) -> None:
        """Flush the file to disk."""
        with _named(self._path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def reopen(self) -> None:
        """Continue at the end of `path`, to which the closed file was moved."""
        self._stream = self._path.open("ab", buffering=0)


@contextmanager
def held(path: Path, wait_s: float = 0) -> Iterator[bool]:
    """Hold a lock file while the block runs; yields whether the lock was acquired.

    The file stays, so that all processes lock the same one. The lock is released however a process ends.

    Args:
        path: the lock file.
        wait_s: how long to wait for a lock that another process holds, in seconds.

    Raises:
        SpectroError: `path` is a symbolic link, through which another file would be opened for writing.
    """
    if path.is_symlink():
        raise SpectroError(f"{printable(path)}: is a symbolic link, not a lock file of spectro's; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait_s)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def remove_leftovers(folder: Path, names: Container[str] | None = None) -> None:
    """Remove half-written files of killed runs from a folder; the caller must hold the folder's lock.

    Args:
        folder: where to look; subfolders are not searched.
        names: the files that the caller writes there; None for all.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and (names is None or found["name"] in names):
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON atomically."""
    write_bytes(path, (json_text(content, indent=2) + "\n").encode())


def json_text(content: Any, *, indent: int | None = None) -> str:
    """Return `content` as JSON that reads back equal, with invisible characters escaped."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _UNSEEN.sub(lambda found: found[0] if found[0] == "\n" else _json_escape(found[0]), text)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_foreign_json(path: Path, *, finite: bool = True) -> Any:
    """Return the content of an untrusted JSON file, which must be short, shallow and strict JSON.

    Args:
        path: the file.
        finite: reject NaN and infinite numbers, which Python writes but JSON does not allow.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, has NaN or infinite numbers or text that UTF-8 cannot encode, is larger than
            `FOREIGN_JSON_BYTES`, or is nested deeper than `FOREIGN_JSON_DEPTH`, as spectro's own files never are.
    """
    with path.open("rb") as file:
        content = file.read(FOREIGN_JSON_BYTES + 1)
    if len(content) > FOREIGN_JSON_BYTES:
        raise ValueError(f"it is larger than {FOREIGN_JSON_BYTES} bytes")
    number = _finite if finite else float
    try:
        found = json.loads(content.decode(), parse_constant=number, parse_float=number)
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
    """Raise ValueError if JSON is nested deeper than `depth`, or holds text that UTF-8 cannot encode."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError("it is nested too deeply")
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_plain(one, depth - 1)


def fingerprint(content: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder for files that can be recreated: the user's cache, which XDG_CACHE_HOME can set.

    Raises:
        SpectroError: the user has no home folder.
    """
    try:
        return user_cache_path("spectro", appauthor=False)
    except RuntimeError as error:
        raise SpectroError("there is no home folder for the cache: name a folder with XDG_CACHE_HOME") from error


def sign(path: Path) -> Signature | None:
    """Return a signature that changes when a file is written or replaced; None if it cannot be read.

    Returns:
        size in bytes, modification and change times in nanoseconds, and inode number. A tool can reset the
        modification time, but not the change time (Windows has the creation time in its place).
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def content_mark(path: Path) -> str:
    """Return size and CRC-32 of a file's content, which are the same for every copy, whatever its times.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
    size = check = 0
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            size, check = size + len(block), isal_zlib.crc32(block, check)
    return f"{size}-{check:08x}"


def path_text(path: str | os.PathLike[str]) -> str:
    """Return `path` as text that UTF-8 can encode: unchanged, except that bytes that are not UTF-8 become \\\\xNN."""
    return re.sub("[\ud800-\udfff]", lambda found: _escape(found[0]), os.fspath(path))


def printable(text: str | os.PathLike[str], limit: int = SHOWN) -> str:
    """Return a name, or untrusted text, as one line that a terminal, a log and a page show as is.

    Control characters, direction marks, separators and other invisible characters become
    escapes (\\\\n, \\\\x1b, \\\\u202e); bytes of a name that are not UTF-8 become \\\\xNN.

    Args:
        text: a path, or any text.
        limit: maximum characters of the result; a longer text loses its middle.
    """
    raw = os.fspath(text)
    near = raw if len(raw) <= 2 * limit else raw[:limit] + raw[-limit:]  # an escape is never shorter than its character
    shown = _UNSEEN.sub(lambda found: _escape(found[0]), near)
    return shown if len(shown) <= limit else f"{shown[: (limit - 1) // 2]}…{shown[-(limit // 2) :]}"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        code -= 0xDC00
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else _wide(code))


def _wide(code: int) -> str:
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 2**16 else json.dumps(character)[1:-1]


def quoted(value: Any) -> str:
    """Return any value quoted for a message: printable, and at most about a line long."""
    return printable(_QUOTED.repr(value))
