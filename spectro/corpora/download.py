"""The freely downloadable corpora, and how their files are listed."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import requests

from spectro.corpora.registry import find
from spectro.errors import DownloadError
from spectro.remote import RemoteFile, fetch_all, get_json, new_session

ZENODO = "https://zenodo.org/records/1188976/files"
BOREALIS = "https://borealisdata.ca/api"
TESS_DOI = "doi:10.5683/SP2/E8H2MF"
GITHUB_API = "https://api.github.com/repos/CheyneyComputerScience/CREMA-D/git/trees/master?recursive=1"
GITHUB_RAW = "https://raw.githubusercontent.com/CheyneyComputerScience/CREMA-D/master"
GITHUB_MEDIA = "https://media.githubusercontent.com/media/CheyneyComputerScience/CREMA-D/master"
CREMA_D_TABLES = ("VideoDemographics.csv", "processedResults/tabulatedVotes.csv")
"""Tables of the actors and of the listeners' votes."""


def ravdess_files(_session: requests.Session) -> list[RemoteFile]:
    """List RAVDESS speech, 208 MB, with Zenodo's checksum."""
    name = "Audio_Speech_Actors_01-24.zip"
    return [
        RemoteFile(url=f"{ZENODO}/{name}", path=PurePosixPath(name), checksum="md5:bc696df654c87fed845eb13823edef8a")
    ]


def ravdess_song_files(_session: requests.Session) -> list[RemoteFile]:
    """List RAVDESS song, 226 MB, with Zenodo's checksum."""
    name = "Audio_Song_Actors_01-24.zip"
    return [
        RemoteFile(url=f"{ZENODO}/{name}", path=PurePosixPath(name), checksum="md5:5411230427d67a21e18aa4d466e6d1b9")
    ]


def tess_files(session: requests.Session, base: str = BOREALIS) -> list[RemoteFile]:
    """List TESS, 2,800 clips, with the checksums from its Dataverse repository."""
    answer = get_json(session, f"{base}/datasets/:persistentId/?persistentId={TESS_DOI}")
    entries = [entry["dataFile"] for entry in answer["data"]["latestVersion"]["files"]]
    return [
        RemoteFile(
            url=f"{base}/access/datafile/{entry['id']}",
            path=PurePosixPath(entry["filename"]),
            checksum=f"{entry['checksum']['type'].lower().replace('-', '')}:{entry['checksum']['value']}",
        )
        for entry in entries
        if PurePosixPath(entry["filename"]).suffix.lower() in {".wav", ".zip"}
    ]


def crema_d_files(
    session: requests.Session, api: str = GITHUB_API, raw: str = GITHUB_RAW, media: str = GITHUB_MEDIA
) -> list[RemoteFile]:
    """List CREMA-D: 7,442 clips from Git LFS, with checksums from its pointers, and two tables from Git."""
    listing = get_json(session, api)
    if listing.get("truncated"):
        raise DownloadError("GitHub lists only a part of CREMA-D's files; try again later, or clone the repository")
    tree = listing["tree"]
    names = [entry["path"] for entry in tree if entry["path"].startswith("AudioWAV/") and entry["path"].endswith("wav")]
    tables = [
        RemoteFile(url=f"{raw}/{entry['path']}", path=PurePosixPath(entry["path"]), checksum=f"git:{entry['sha']}")
        for entry in tree
        if entry["path"] in CREMA_D_TABLES
    ]
    return tables + [
        RemoteFile(url=f"{media}/{name}", path=PurePosixPath(name), pointer=f"{raw}/{name}") for name in sorted(names)
    ]


SOURCES: dict[str, Callable[[requests.Session], list[RemoteFile]]] = {
    "ravdess": ravdess_files,
    "ravdess-song": ravdess_song_files,
    "tess": tess_files,
    "crema-d": crema_d_files,
}
"""Functions that list the files of each corpus, by the corpus's name."""


def download(name: str, folder: Path) -> Path:
    """Fetch the corpus `name` into `folder`, and unpack its archives there.

    Returns:
        `folder`.

    Raises:
        DownloadError: the corpus may not be downloaded without its owner's consent (the message says where to ask),
            or the network or a checksum failed; another run continues where this one stopped.
        CorpusError: the corpus is unknown.
    """
    corpus = find(name)
    if name not in SOURCES:
        where = f"see {corpus.homepage}" if corpus.homepage else f"spectro downloads {', '.join(SOURCES)}"
        raise DownloadError(
            f"{corpus.title} cannot be downloaded from here (licence: {corpus.licence}); {where}; "
            f"name its folder with --source when rendering"
        )
    session = new_session()
    try:
        files = SOURCES[name](session)
    except (KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"the server lists the files of {corpus.title} in an unexpected format") from error
    fetch_all(session, files, folder)
    return folder
