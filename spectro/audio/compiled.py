"""Choose where numba caches the compiled code of librosa.

numba caches next to librosa or in the user's cache, and fails if it can write to neither: in a container with a
read-only file system, or for a service's user without a home.
"""

import os
import stat
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"


@cache
def ensure_cache() -> None:
    """Let numba cache in the temporary folder if it can write nowhere else; call this before importing librosa.

    Raises:
        OSError: no temporary folder can be written either.
    """
    from numba import config
    from numba.misc.appdirs import AppDirs

    package = find_spec("librosa")
    beside = [Path(place, "util", "__pycache__") for place in (package and package.submodule_search_locations) or ()]
    places = [
        *([Path(config.CACHE_DIR)] if config.CACHE_DIR else []),
        *beside,
        Path(AppDirs("numba", appauthor=False).user_cache_dir),
    ]
    if not any(map(_can_be_written, places)):
        config.CACHE_DIR = os.environ[VARIABLE] = str(_own_folder())  # for this process and its children


def _can_be_written(folder: Path) -> bool:
    """Return whether numba can use the folder, by trying: permission bits are not the only obstacle."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _own_folder() -> Path:
    """Return a temporary folder that only this user owns, the same one every time: numba executes its content."""
    owner = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"spectro-numba-{owner}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    ours = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
    if ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return folder
    return Path(tempfile.mkdtemp(prefix="spectro-numba-"))
