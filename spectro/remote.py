"""Resumable downloads with checksums and progress bars.

A file is downloaded beside its destination, resumed where it was cut off, and moved into place when its checksum
matches; then archives are unpacked. Files that already exist and match are not fetched again.
"""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util.retry import Retry

from spectro.errors import DownloadError
from spectro.outputs import check_ours, enter, release

CHUNK = 1 << 16
TIMEOUT_S = 60
THREADS = 8


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch.

    Args:
        url: where the file is.
        path: destination, relative to the download folder.
        checksum: `md5:...`, `sha256:...`, or `git:...` (Git's blob hash); None if `pointer` gives it.
        pointer: URL of a Git LFS pointer that gives the SHA-256.
    """

    url: str
    path: PurePosixPath
    checksum: str | None = None
    pointer: str | None = None


def new_session() -> requests.Session:
    """Return a session that retries after transient errors."""
    session = requests.Session()
    retry = Retry(total=5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=THREADS))
    return session


def fetch_all(session: requests.Session, files: list[RemoteFile], folder: Path) -> None:
    """Fetch files in parallel, and unpack archives.

    Raises:
        DownloadError: a file failed; files already fetched stay.
    """
    if not files:
        raise DownloadError("the server lists no file; its layout may have changed")
    single = len(files) == 1
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(fetch, session, file, folder, show_progress=single) for file in files]
        try:
            for future in tqdm(futures, unit="file", disable=single):
                path = future.result()
                if path.suffix == ".zip":
                    unpack(path, folder)
        finally:
            pool.shutdown(cancel_futures=True)


def fetch(session: requests.Session, file: RemoteFile, folder: Path, *, show_progress: bool = False) -> Path:
    """Fetch one file, resuming where an earlier attempt was cut off.

    Returns:
        the path of the complete, verified file.

    Raises:
        DownloadError: the network failed, or the checksum does not match.
    """
    if file.path.is_absolute() or ".." in file.path.parts:
        raise DownloadError(f"{file.url}: the server names a path outside the folder: {file.path}")
    target = folder / file.path
    checksum = file.checksum or _checksum_from_pointer(session, str(file.pointer))
    if target.exists() and matches(target, checksum):
        return target
    check_ours([target], error=DownloadError)
    partial = target.with_name(target.name + ".part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        _receive(session, file.url, partial, show_progress)
    except (requests.RequestException, OSError) as error:
        raise DownloadError(f"{file.url}: {error}; run the command again to continue where it stopped") from error
    if not matches(partial, checksum):
        partial.unlink()
        raise DownloadError(f"{file.url}: does not match its checksum {checksum}; run the command again")
    enter([target])
    partial.replace(target)
    release([target])
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive into `folder`; files that already exist in full are kept.

    Raises:
        DownloadError: the archive is damaged, or contains a path outside `folder`.
    """
    made: list[Path] = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in tqdm(opened.infolist(), desc=f"unpacking {archive.name}", unit="file"):
                target = (folder / member.filename).resolve()
                if not target.is_relative_to(folder.resolve()):
                    raise DownloadError(f"{archive}: contains a path outside the folder: {member.filename}")
                if not (target.is_file() and target.stat().st_size == member.file_size):
                    files = [] if member.is_dir() else [target]
                    check_ours(files, error=DownloadError)
                    enter(files)
                    opened.extract(member, folder)
                    made += files
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{archive}: is damaged ({error}); delete it and run the command again") from error
    finally:
        release(made)


def _receive(session: requests.Session, url: str, partial: Path, show_progress: bool) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={done}-", "Accept-Encoding": "identity"} if done else {"Accept-Encoding": "identity"}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the file is complete; its checksum is verified later
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        length = int(answer.headers.get("Content-Length", 0))
        with (
            partial.open("ab" if resumed else "wb") as file,
            tqdm(
                desc=partial.stem,
                total=length + done * resumed,
                initial=done * resumed,
                unit="B",
                unit_scale=True,
                disable=not show_progress,
            ) as progress,
        ):
            for chunk in answer.iter_content(CHUNK):
                progress.update(file.write(chunk))


def _checksum_from_pointer(session: requests.Session, url: str) -> str:
    try:
        answer = session.get(url, timeout=TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {error}") from error
    fields = dict(line.partition(" ")[::2] for line in answer.text.splitlines())
    if not fields.get("oid", "").startswith("sha256:"):
        raise DownloadError(f"{url}: is not a Git LFS pointer; the repository's layout may have changed")
    return fields["oid"]


def get_json(session: requests.Session, url: str) -> dict[str, Any]:
    """Return the JSON object at a URL.

    Raises:
        DownloadError: the request failed.
    """
    try:
        answer = session.get(url, timeout=TIMEOUT_S)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {error}") from error
    return content


def matches(path: Path, checksum: str) -> bool:
    """Return whether a file matches a checksum, `md5:...`, `sha256:...` or `git:...`."""
    algorithm, _, expected = checksum.partition(":")
    if algorithm == "git":
        header = b"blob %d\0" % path.stat().st_size
        return hashlib.sha1(header + path.read_bytes()).hexdigest() == expected
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected.lower()
