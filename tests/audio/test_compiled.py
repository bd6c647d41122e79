"""As in a container, where neither the installed packages nor the home folder can be written."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from numba import config

from spectro.audio import compiled


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, with numba in its initial state."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv(compiled.VARIABLE, "")
    compiled.ensure_cache.cache_clear()
    yield tmp_path
    compiled.ensure_cache.cache_clear()


def _forbid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make all folders but the temporary one read-only."""
    tried = compiled._can_be_written
    monkeypatch.setattr(compiled, "_can_be_written", lambda folder: folder.is_relative_to(tmp_path) and tried(folder))


def test_compiled_code_goes_to_a_folder_of_our_own_where_nothing_else_can_be_written(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid(monkeypatch, temporary)
    compiled.ensure_cache()
    folder = Path(config.CACHE_DIR)
    assert folder.parent == temporary
    assert os.environ[compiled.VARIABLE] == config.CACHE_DIR
    assert folder.stat().st_mode & 0o777 == 0o700


def test_numba_keeps_its_own_place_where_it_has_one(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_can_be_written", lambda folder: folder.name == "__pycache__")
    compiled.ensure_cache()
    assert (config.CACHE_DIR, os.environ[compiled.VARIABLE], list(temporary.iterdir())) == ("", "", [])


@pytest.mark.parametrize("trap", ["link", "writable by all"])
def test_a_folder_that_somebody_else_laid_there_is_not_taken(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    _forbid(monkeypatch, temporary)
    laid = compiled._own_folder()
    if trap == "link":
        laid.rmdir()
        (temporary / "elsewhere").mkdir()
        laid.symlink_to(temporary / "elsewhere")
    else:
        laid.chmod(0o777)
    compiled.ensure_cache()
    assert Path(config.CACHE_DIR) not in (laid, temporary / "elsewhere")
    assert Path(config.CACHE_DIR).stat().st_mode & 0o777 == 0o700
