"""Downloads against a server on this machine that counts, breaks off and lies on request."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import pytest

from spectro.corpora import download as downloads
from spectro.corpora.download import RemoteFile, crema_d_files, download, fetch, fetch_all, new_session, tess_files
from spectro.errors import CorpusError, DownloadError

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(ThreadingHTTPServer):
    """Serves `files`; breaks off after `limit` bytes if that is set, and remembers what was asked."""

    files: dict[str, bytes]
    limit: int | None
    asked: list[tuple[str, str | None]]


class Handler(BaseHTTPRequestHandler):
    server: Server

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


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.limit, server.asked = {"/a.bin": CONTENT}, None, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds until it notices its end
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _url(server: Server, path: str = "") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def _file(server: Server, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(
        url=_url(server, "/a.bin"),
        path=PurePosixPath("sub/a.bin"),
        checksum="sha256:" + hashlib.sha256(content).hexdigest(),
    )


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    with new_session() as session:
        for _ in range(2):
            assert fetch(session, _file(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/a.bin", None)]


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.limit = 400_000
    with new_session() as session:
        for _ in range(2):
            with pytest.raises(DownloadError, match="run the command again to go on"):
                fetch(session, _file(server), tmp_path)
        assert not (tmp_path / "sub" / "a.bin").exists()
        server.limit = None
        assert fetch(session, _file(server), tmp_path).read_bytes() == CONTENT
    offsets = [int(asked.removeprefix("bytes=").removesuffix("-")) for _path, asked in server.asked if asked]
    assert len(offsets) == 2
    assert 0 < offsets[0] < offsets[1] < len(CONTENT)


def test_all_of_a_file_that_waits_for_its_check_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin.part").write_bytes(CONTENT)
    with new_session() as session:
        assert fetch(session, _file(server), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with new_session() as session, pytest.raises(DownloadError, match="does not match its checksum"):
        fetch(session, _file(server, b"other"), tmp_path)
    assert not list(tmp_path.rglob("a.bin*"))


def test_a_missing_file_is_an_error_that_names_it(server: Server, tmp_path: Path) -> None:
    gone = RemoteFile(url=_url(server, "/gone"), path=PurePosixPath("gone"), checksum="md5:00")
    with new_session() as session, pytest.raises(DownloadError, match="/gone: 404"):
        fetch(session, gone, tmp_path)


def test_archives_are_unpacked(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Actor_01/03-01-01-01-01-01-01.wav", "sound")
    server.files["/c.zip"] = buffer.getvalue()
    checksum = "md5:" + hashlib.md5(buffer.getvalue()).hexdigest()
    file = RemoteFile(url=_url(server, "/c.zip"), path=PurePosixPath("c.zip"), checksum=checksum)
    with new_session() as session:
        fetch_all(session, [file], tmp_path)
    assert (tmp_path / "Actor_01" / "03-01-01-01-01-01-01.wav").read_text() == "sound"


@pytest.mark.parametrize("name", ["../evil.wav", "/evil.wav"])
def test_an_archive_cannot_write_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    archive_path = tmp_path / "in" / "evil.zip"
    archive_path.parent.mkdir()
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(DownloadError, match="outside of the folder"):
        downloads.unpack(archive_path, tmp_path / "in")


def test_a_server_cannot_name_a_file_outside_of_the_folder(server: Server, tmp_path: Path) -> None:
    file = RemoteFile(url=_url(server, "/a.bin"), path=PurePosixPath("../a.bin"), checksum="md5:00")
    with new_session() as session, pytest.raises(DownloadError, match="outside of the folder"):
        fetch(session, file, tmp_path)


def test_crema_d_is_listed_from_its_tree_and_checked_by_its_pointers(server: Server, tmp_path: Path) -> None:
    name = "AudioWAV/1001_DFA_ANG_XX.wav"
    digest = hashlib.sha256(CONTENT).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(CONTENT)}\n"
    tree = {"tree": [{"path": name}, {"path": "AudioMP3/1001_DFA_ANG_XX.mp3"}, {"path": "README.md"}]}
    server.files |= {"/api": json.dumps(tree).encode(), f"/raw/{name}": pointer.encode(), f"/media/{name}": CONTENT}
    with new_session() as session:
        files = crema_d_files(session, _url(server, "/api"), _url(server, "/raw"), _url(server, "/media"))
        fetch_all(session, files, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav")] == [name]


def test_tess_is_listed_by_its_repository(server: Server, tmp_path: Path) -> None:
    checksum = {"type": "MD5", "value": hashlib.md5(CONTENT).hexdigest()}
    entry = {"dataFile": {"id": 7, "filename": "OAF_back_angry.wav", "checksum": checksum}}
    listing = {"data": {"latestVersion": {"files": [entry]}}}
    address = "/datasets/:persistentId/?persistentId=doi:10.5683/SP2/E8H2MF"
    server.files |= {address: json.dumps(listing).encode(), "/access/datafile/7": CONTENT}
    with new_session() as session:
        fetch_all(session, tess_files(session, _url(server)), tmp_path)
    assert (tmp_path / "OAF_back_angry.wav").read_bytes() == CONTENT


def test_a_corpus_that_may_not_be_downloaded_says_where_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"on registration\); see http://kahlan\.eps\.surrey"):
        download("savee", tmp_path)
    with pytest.raises(CorpusError, match="unknown corpus"):
        download("nope", tmp_path)


def test_a_listing_that_is_cut_short_or_of_another_form_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for listing, message in (({"truncated": True, "tree": []}, "a part of CREMA-D's files"), ({}, "another form")):
        monkeypatch.setattr(downloads, "_get_json", lambda *_, listing=listing: listing)
        with pytest.raises(DownloadError, match=message):
            download("crema-d", tmp_path)
