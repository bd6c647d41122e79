"""Downloads from a local server that logs requests and can break off."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from spectro.errors import DownloadError
from spectro.remote import RemoteFile, fetch, fetch_all, new_session, unpack
from tests.servers import FileServer, serving

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving({"/a.bin": CONTENT}) as server:
        yield server


def _file(server: FileServer, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(
        url=server.url("/a.bin"),
        path=PurePosixPath("sub/a.bin"),
        checksum="sha256:" + hashlib.sha256(content).hexdigest(),
    )


def test_a_file_is_fetched_once(server: FileServer, tmp_path: Path) -> None:
    with new_session() as session:
        for _ in range(2):
            assert fetch(session, _file(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/a.bin", None)]


def test_an_interrupted_download_resumes_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.limit = 400_000
    with new_session() as session:
        for _ in range(2):
            with pytest.raises(DownloadError, match="run the command again to continue"):
                fetch(session, _file(server), tmp_path)
        assert not (tmp_path / "sub" / "a.bin").exists()
        server.limit = None
        assert fetch(session, _file(server), tmp_path).read_bytes() == CONTENT
    offsets = [int(asked.removeprefix("bytes=").removesuffix("-")) for _path, asked in server.asked if asked]
    assert len(offsets) == 2
    assert 0 < offsets[0] < offsets[1] < len(CONTENT)


def test_a_part_file_that_is_already_complete_is_accepted(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin.part").write_bytes(CONTENT)
    with new_session() as session:
        assert fetch(session, _file(server), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_raises_an_error_and_leaves_no_file(server: FileServer, tmp_path: Path) -> None:
    with new_session() as session, pytest.raises(DownloadError, match="does not match its checksum"):
        fetch(session, _file(server, b"other"), tmp_path)
    assert not list(tmp_path.rglob("a.bin*"))


def test_a_missing_file_raises_an_error_that_names_it(server: FileServer, tmp_path: Path) -> None:
    gone = RemoteFile(url=server.url("/gone"), path=PurePosixPath("gone"), checksum="md5:00")
    with new_session() as session, pytest.raises(DownloadError, match="/gone: 404"):
        fetch(session, gone, tmp_path)


def test_archives_are_unpacked(server: FileServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Actor_01/03-01-01-01-01-01-01.wav", "sound")
    server.files["/c.zip"] = buffer.getvalue()
    checksum = "md5:" + hashlib.md5(buffer.getvalue()).hexdigest()
    file = RemoteFile(url=server.url("/c.zip"), path=PurePosixPath("c.zip"), checksum=checksum)
    with new_session() as session:
        fetch_all(session, [file], tmp_path)
    made = tmp_path / "Actor_01" / "03-01-01-01-01-01-01.wav"
    assert made.read_text() == "sound"
    made.write_text("trimmed by the user")
    with new_session() as session, pytest.raises(DownloadError, match=r"01\.wav: was changed since spectro wrote it"):
        fetch_all(session, [file], tmp_path)
    assert made.read_text() == "trimmed by the user"


def test_a_fetched_file_that_the_user_changed_is_kept(server: FileServer, tmp_path: Path) -> None:
    with new_session() as session:
        path = fetch(session, _file(server), tmp_path)
        path.write_text("changed by the user")
        with pytest.raises(DownloadError, match=r"a\.bin: was changed since spectro wrote it"):
            fetch(session, _file(server), tmp_path)
    assert path.read_text() == "changed by the user"


@pytest.mark.parametrize("name", ["../evil.wav", "/evil.wav"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    archive_path = tmp_path / "in" / "evil.zip"
    archive_path.parent.mkdir()
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(DownloadError, match="outside the folder"):
        unpack(archive_path, tmp_path / "in")


def test_a_server_cannot_name_a_file_outside_the_folder(server: FileServer, tmp_path: Path) -> None:
    file = RemoteFile(url=server.url("/a.bin"), path=PurePosixPath("../a.bin"), checksum="md5:00")
    with new_session() as session, pytest.raises(DownloadError, match="outside the folder"):
        fetch(session, file, tmp_path)
