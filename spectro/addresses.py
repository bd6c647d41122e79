"""Remote files: addresses such as s3://bucket/calls/a.wav, read and written through fsspec.

An address can replace a path: it has a name and a suffix, and converts to text. Access (keys, regions, another server)
is configured through fsspec's own environment variables and configuration files, such as `FSSPEC_S3_ENDPOINT_URL`
(https://filesystem-spec.readthedocs.io, Configuration). Whatever the service behind an address raises becomes an
`OSError` that names the address.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, TypeAlias

from spectro.errors import SpectroError
from spectro.files import Signature, content_mark, printable, sign

_SCHEME = re.compile(r"(?P<name>[a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # at least two letters: C: is a drive
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs", "az": "abfs"}
"""The extra of spectro that installs fsspec's requirements for each scheme."""
CHANGES = (
    "ETag",
    "etag",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "modified",
    "modificationTime",
    "modify",
    "created",
    "generation",
    "md5Hash",
    "content_md5",
    "Content-MD5",
    "Digest",
)
"""Fields of file information that change when a file is rewritten; the first one present counts."""
AT_ONCE = 2**24
"""Largest file in bytes that is fetched whole; larger ones are read on demand, in blocks of half this size."""
UNSIZED = 2**28
"""Largest file in bytes that is fetched from a server that does not tell its size; it is fetched whole."""
FETCHERS = 16
"""Threads that fetch files; they spend most of the time waiting."""


@dataclass(frozen=True)
class Address(os.PathLike[str]):
    """An address that fsspec supports.

    Args:
        url: the address as given, with its scheme.
        signature: the signature from a folder listing, see `sign`; None if the address does not come from one.
    """

    url: str
    signature: Signature | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Address":
        return Address(f"{self.url}{name}" if self.url.endswith("/") else f"{self.url}/{name}")

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(_SCHEME.sub("", self.url))

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self._path.name

    @property
    def suffix(self) -> str:
        """The suffix of the last part, with its dot."""
        return self._path.suffix

    @property
    def parent(self) -> "Address":
        """The address of the folder."""
        above = self.url.rstrip("/").rpartition("/")[0]
        return Address(f"{above}/" if above.endswith("/") else above)

    def kind(self) -> Literal["file", "folder"] | None:
        """Return what exists at the address; None for nothing."""
        with _as_os_error(self.url):
            system, path = _system(self.url)
            system.invalidate_cache()
            if not system.exists(path):
                return None
            return "folder" if system.isdir(path) else "file"

    def files(self, *, below: bool = True) -> Iterator["Address"]:
        """Yield all files with their signatures from the listing, folder by folder, sorted by name.

        Args:
            below: whether to include files in subfolders.

        Raises:
            OSError: a folder cannot be listed.
        """
        with _as_os_error(self.url):
            system, path = _system(self.url)
            system.invalidate_cache()
        folders = [path]
        while folders:
            here = folders.pop()
            with _as_os_error(self._called(here, path)):
                entries = sorted(system.ls(here, detail=True), key=lambda one: str(one["name"]))
                system.invalidate_cache()  # it would keep the listings of all folders in memory
            inner = []
            for found in entries:
                name = str(found["name"])
                if name.rstrip("/") == here.rstrip("/"):
                    continue  # object stores have files that represent folders
                if found["type"] == "directory":
                    inner.append(name)
                else:
                    known = None if found.get("size") is None else _signature(found)  # else the file itself is asked
                    yield Address(self._called(name, path), known)
            folders += reversed(inner) if below else []

    def _called(self, name: str, path: str) -> str:
        """Return the address of the file system's entry `name`, where `path` is this address in the file system."""
        if _SCHEME.match(name):
            return name
        if name.startswith(path):
            return f"{self.url.rstrip('/')}/{name[len(path) :].lstrip('/')}".rstrip("/")
        return f"{self.url.partition('://')[0]}://{name.lstrip('/')}"

    def sign(self) -> Signature | None:
        """Return a signature that changes when the file is rewritten; None if it cannot be read."""
        try:
            return self.looked_up()
        except (OSError, SpectroError):
            return None

    def looked_up(self) -> Signature:
        """Return a signature that changes when the file is rewritten.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        if self.signature is not None:
            return self.signature
        with _as_os_error(self.url):
            system, path = _system(self.url)
            info = system.info(path)
            if info.get("size") is None and not any(info.get(name) for name in CHANGES):
                raise OSError("the server tells neither its size nor its version")
            return _signature(info)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file as a seekable stream for reading.

        Raises:
            OSError: it cannot be opened.
        """
        with _as_os_error(self.url):
            system, path = _system(self.url)
            size = system.info(path).get("size")
            stream: BinaryIO
            if size is None:
                with system.open(path, "rb") as found:
                    stream = io.BytesIO(found.read(UNSIZED + 1))
                if len(stream.getbuffer()) > UNSIZED:
                    raise OSError(f"the server does not tell its size, which is over {UNSIZED >> 20} MiB; download it")
            elif size <= AT_ONCE:
                stream = io.BytesIO(system.cat_file(path))
            else:
                stream = system.open(path, "rb", block_size=AT_ONCE // 2)
            stream.name = self.url  # type: ignore[misc]  # its name in errors
        with stream:
            yield stream

    def read_bytes(self) -> bytes:
        """Return the file's content.

        Raises:
            OSError: it cannot be read.
        """
        with _as_os_error(self.url):
            system, path = _system(self.url)
            content: bytes = system.cat_file(path)
            return content

    def write_bytes(self, content: bytes) -> None:
        """Write or replace the file; object stores write it in full or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with _as_os_error(self.url):
            system, path = _system(self.url)
            if not system.exists(parent := path.rpartition("/")[0]) and parent:
                system.makedirs(parent, exist_ok=True)
            system.pipe_file(path, content)

    def upload(self, file: Path) -> None:
        """Upload a local file to the address.

        Raises:
            OSError: it cannot be read or written.
        """
        with _as_os_error(self.url):
            system, path = _system(self.url)
            system.put_file(str(file), path)

    def remove(self) -> None:
        """Remove the file.

        Raises:
            OSError: it cannot be removed.
        """
        with _as_os_error(self.url):
            system, path = _system(self.url)
            system.rm_file(path)


Place: TypeAlias = Path | Address


def is_address(text: str | os.PathLike[str]) -> bool:
    """Return whether a text has a scheme, as in s3://bucket/calls."""
    return bool(_SCHEME.match(os.fspath(text)))


def place(given: str | os.PathLike[str]) -> Place:
    """Return the address or the path that a text names."""
    if isinstance(given, Address):
        return given
    text = os.fspath(given)
    found = _SCHEME.match(text)
    if not found:
        return Path(text)
    if found["name"].lower() in ("file", "local"):
        return Path(text[found.end() :])
    return Address(text)


def sign_at(where: Place) -> Signature | None:
    """Return a signature that changes when a file is rewritten, see `files.sign`; None if it cannot be read."""
    return where.sign() if isinstance(where, Address) else sign(where)


def mark_at(where: Place) -> str:
    """Return a text that differs between recordings of different content.

    It is `files.content_mark` on this machine. At an address it is made of the size and the version that the service
    reports, so that nothing is fetched; a service that reports no version is trusted not to change files of one size.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    return "-".join(map(str, where.looked_up()[:2])) if isinstance(where, Address) else content_mark(where)


def _system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the address's path in it.

    Raises:
        SpectroError: fsspec does not know the scheme, or its requirements for the scheme are not installed.
    """
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0].lower()
        way = f"install spectro[{EXTRAS[scheme]}]" if scheme in EXTRAS else str(error)
        raise SpectroError(f"{printable(url)}: cannot be reached: {way}") from error
    except ValueError as error:
        raise SpectroError(
            f"{printable(url)}: {printable(str(error))}; name a path, or an address such as s3://..."
        ) from error
    return found


@contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    """Turn whatever a service raises into an OSError that names the address."""
    try:
        yield
    except SpectroError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "does not exist", url) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error) or type(error).__name__, url) from error
    except Exception as error:  # each service raises its own kinds
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(None, text, url) from error


def _signature(info: dict[str, Any]) -> Signature:
    """Return the size, and a number that changes with the version of the file that a service reports."""
    value = next((info[name] for name in CHANGES if info.get(name) is not None), "")
    version = str(value.timestamp() if isinstance(value, datetime) else value)
    number = int.from_bytes(hashlib.blake2b(version.encode(), digest_size=7).digest())
    return int(info.get("size") or 0), number, 0, 0
