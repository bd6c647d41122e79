"""Sources of recordings: their names in messages, checks of files, and hints on files that are not recordings."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from spectro.addresses import Address, Place
from spectro.errors import AudioError, SpectroError
from spectro.files import printable

Source: TypeAlias = str | os.PathLike[str] | BinaryIO

FOREIGN = {
    r"\s*<|\s*\{": "text such as a web page; perhaps a download failed",
    r"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!": "an archive; unpack it first",
    r"%PDF|\x89PNG|\xff\xd8\xff|GIF8": "a document or a picture",
}
CONVERTED = {
    r"....ftyp": "M4A, MP4 or 3GP",
    r"\x1aE\xdf\xa3": "WebM or Matroska",
    r"0&\xb2u": "WMA",
    r"#!AMR": "AMR",
    r"\xff[\xf0\xf1\xf8\xf9]": "AAC",
}
"""First bytes of files that libsndfile does not read: files that are not recordings, and files to be converted."""


def name_of(source: Source) -> str:
    """Return a recording's name for error messages."""
    if isinstance(source, str | os.PathLike):
        return printable(source)
    return printable(str(getattr(source, "name", "audio")))


class Watched(io.RawIOBase):
    """A file that ends at the first error, and keeps it, because libsndfile's callbacks cannot raise one.

    Args:
        file: a seekable binary file.
        name: its name in errors.

    Attributes:
        error: the first error; None while there is none.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        self.error: Exception | None = None

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: the file is seekable."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the current position."""
        return self._file.tell()

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill a buffer from the current position; return the number of bytes, 0 at the end and after an error."""
        if self.error is not None:
            return 0
        try:
            read: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001  # each service raises its own kinds
            self.error = error
            return 0
        return read

    def check(self) -> None:
        """Raise AudioError if reading failed."""
        if self.error is not None:
            raise AudioError(f"{printable(self.name)}: cannot be read ({_reason(self.error)})") from self.error


@contextmanager
def fetched(address: Address) -> Iterator[BinaryIO]:
    """Open the file at an address as a binary file that is named after the address.

    Raises:
        AudioError: the file cannot be opened, or reading it failed, even if its reader took that for the end of it.
    """
    with ExitStack() as stack:
        try:
            found = stack.enter_context(address.opened())
        except OSError as error:
            raise AudioError(f"{name_of(address)}: cannot be opened ({_reason(error)})") from error
        except SpectroError as error:  # nothing knows the scheme
            raise AudioError(str(error)) from error
        if type(found) is io.BytesIO:  # fetched whole
            yield found
            return
        stream = Watched(found, address.url)
        try:
            yield cast(BinaryIO, stream)
        except Exception:
            stream.check()
            raise
        stream.check()


def readable(where: Place) -> AbstractContextManager[Path | BinaryIO]:
    """Return a context with a path as it is, or with the opened file at an address; raises what `fetched` raises."""
    return fetched(where) if isinstance(where, Address) else nullcontext(where)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return printable(text.splitlines()[0])


def check_file(path: Path, name: str, *, opens: bool = False) -> None:
    """Raise AudioError if a path is not a file with content or, with `opens`, if the system cannot open it."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            next(path.iterdir(), None)  # raises if it cannot be listed
            raise AudioError(f"{name}: is a folder, not a recording")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{name}: is not a regular file")
        if status.st_size == 0:
            raise AudioError(f"{name}: is empty (0 bytes)")
        if opens:
            path.open("rb").close()
    except (OSError, ValueError) as error:
        broken_link = isinstance(error, FileNotFoundError) and path.is_symlink()
        reason = "broken link" if broken_link else getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{name}: cannot be opened ({reason})") from error


def what_it_is(source: Source) -> str:
    """Identify a file that libsndfile does not read, with what to do about it; empty if unknown."""
    begin = _begin(source)
    for pattern, kind in FOREIGN.items():
        if re.match(pattern, begin):
            return f"it is {kind}"
    name = printable(Path(source).name) if isinstance(source, str | os.PathLike) else "FILE"
    stem = printable(Path(source).stem) if isinstance(source, str | os.PathLike) else "FILE"
    for pattern, kind in CONVERTED.items():
        if re.match(pattern, begin, re.DOTALL):
            return f"it is {kind}; convert it first: ffmpeg -i {name} {stem}.wav"
    return ""


def _begin(source: Source) -> str:
    """Return a file's first bytes as Latin-1; empty if it cannot be read."""
    try:
        if isinstance(source, str | os.PathLike):
            with Path(source).open("rb") as file:
                return file.read(64).decode("latin-1")
        source.seek(0)
        return source.read(64).decode("latin-1")
    except (OSError, ValueError, AttributeError):
        return ""
