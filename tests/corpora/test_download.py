"""Corpora listed and fetched from a local server."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from spectro.corpora import download as downloads
from spectro.corpora.download import crema_d_files, download, tess_files
from spectro.errors import CorpusError, DownloadError
from spectro.remote import fetch_all, new_session
from tests.servers import FileServer, serving

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving({}) as server:
        yield server


def test_crema_d_is_listed_from_its_git_tree_and_verified_with_checksums(server: FileServer, tmp_path: Path) -> None:
    name = "AudioWAV/1001_DFA_ANG_XX.wav"
    digest = hashlib.sha256(CONTENT).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(CONTENT)}\n"
    votes, table = "processedResults/tabulatedVotes.csv", b"hello\n"
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # from `git hash-object`
    others = [{"path": "AudioMP3/1001_DFA_ANG_XX.mp3"}, {"path": "README.md"}]
    tree = {"tree": [{"path": name}, {"path": votes, "sha": blob}, *others]}
    server.files |= {"/api": json.dumps(tree).encode(), f"/raw/{name}": pointer.encode(), f"/media/{name}": CONTENT}
    server.files[f"/raw/{votes}"] = table
    with new_session() as session:
        files = crema_d_files(session, server.url("/api"), server.url("/raw"), server.url("/media"))
        fetch_all(session, files, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav")] == [name]
    assert (tmp_path / votes).read_bytes() == table
    server.files[f"/raw/{votes}"] = b"jello\n"
    (tmp_path / votes).unlink()
    with new_session() as session, pytest.raises(DownloadError, match="does not match its checksum"):
        fetch_all(session, files, tmp_path)


def test_tess_is_listed_from_its_dataverse_repository(server: FileServer, tmp_path: Path) -> None:
    checksum = {"type": "MD5", "value": hashlib.md5(CONTENT).hexdigest()}
    entry = {"dataFile": {"id": 7, "filename": "OAF_back_angry.wav", "checksum": checksum}}
    listing = {"data": {"latestVersion": {"files": [entry]}}}
    address = "/datasets/:persistentId/?persistentId=doi:10.5683/SP2/E8H2MF"
    server.files |= {address: json.dumps(listing).encode(), "/access/datafile/7": CONTENT}
    with new_session() as session:
        fetch_all(session, tess_files(session, server.url()), tmp_path)
    assert (tmp_path / "OAF_back_angry.wav").read_bytes() == CONTENT


def test_the_error_for_a_restricted_corpus_gives_its_address(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"on registration\); see http://kahlan\.eps\.surrey"):
        download("savee", tmp_path)
    with pytest.raises(CorpusError, match="unknown corpus"):
        download("nope", tmp_path)


def test_a_truncated_or_malformed_listing_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for listing, message in (({"truncated": True, "tree": []}, "a part of CREMA-D's files"), ({}, "unexpected format")):
        monkeypatch.setattr(downloads, "get_json", lambda *_, listing=listing: listing)
        with pytest.raises(DownloadError, match=message):
            download("crema-d", tmp_path)
