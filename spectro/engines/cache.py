"""Cached exports for the engines that compute them: made once per checkpoint, and complete whenever used."""

import logging
import shutil
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from spectro.engines import export
from spectro.engines.registry import FOR_EXPORTS
from spectro.errors import CheckpointError, ExportError, SpectroError
from spectro.files import cache_folder, fingerprint, printable
from spectro.model import metadata as descriptions
from spectro.model.metadata import EXPORT_FILE

A_DAY_S = 86_400
LOG = logging.getLogger("spectro")


def kept(folder: Path) -> Path:
    """Return the folder of a checkpoint's export in the cache; it is exported if it is missing, or damaged.

    The checkpoint is exported again if the version of spectro, PyTorch or an engine changes.

    Raises:
        CheckpointError: the folder holds no checkpoint.
        ExportError: the network cannot be exported, or its export cannot be stored.
    """
    try:
        name = fingerprint([descriptions.identity(folder), _versions()])
    except FileNotFoundError as error:
        raise descriptions.missing(folder, Path(error.filename).name) from error
    except OSError as error:
        raise CheckpointError(f"{printable(folder)}: cannot be read ({error.strerror or error})") from error
    try:
        out = cache_folder() / name
    except SpectroError as error:
        raise ExportError(str(error)) from error
    try:
        if _intact(out):
            return out
        if out.exists():
            LOG.warning("%s: is damaged; exporting it again", printable(out))
            shutil.rmtree(out)
        LOG.info("exporting %s once, for a faster engine, to %s", printable(folder), printable(out))
        _forget_killed(out)
        spec = descriptions.Description.read(folder).spec
        export.export(folder, out, list(islice(export.synthetic(spec), export.BATCH)), ir=False, replace=False)
    except OSError as error:
        if not _intact(out):  # or another process was faster
            raise ExportError(
                f"{printable(out)}: an export cannot be stored there ({error.strerror or error}): set XDG_CACHE_HOME "
                "to a writable folder, or predict with an export that `spectro export` writes"
            ) from error
    return out


def _intact(out: Path) -> bool:
    """Return whether an export in the cache exists, and is unchanged."""
    try:
        made = descriptions.Description.read(out).export
        return made is not None and made.sha256 == export.sha256(out / EXPORT_FILE)
    except (CheckpointError, OSError):
        return False


def _forget_killed(out: Path) -> None:
    """Remove folders that killed exports left beside a new one, if they are unchanged for a day."""
    for left in out.parent.glob(f".{out.name}.*"):
        if time.time() - left.stat().st_mtime > A_DAY_S:
            shutil.rmtree(left, ignore_errors=True)


def _versions() -> dict[str, str]:
    packages = ["spectro", "torch", *(engine.package for engine in FOR_EXPORTS.values() if engine.installed())]
    return {name: version(name) for name in packages}
