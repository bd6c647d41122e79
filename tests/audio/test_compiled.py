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


def _make_other_folders_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make all folders but the temporary one read-only."""
    tried = compiled._can_be_written
    monkeypatch.setattr(compiled, "_can_be_written", lambda folder: folder.is_relative_to(tmp_path) and tried(folder))


def test_numba_caches_in_a_private_folder_where_nothing_else_is_writable(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_other_folders_read_only(monkeypatch, temporary)
    compiled.ensure_cache()
    folder = Path(config.CACHE_DIR)
    assert folder.parent == temporary
    assert os.environ[compiled.VARIABLE] == config.CACHE_DIR
    assert folder.stat().st_mode & 0o777 == 0o700


def test_numba_keeps_its_default_cache_where_it_is_writable(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_can_be_written", lambda folder: folder.name == "__pycache__")
    compiled.ensure_cache()
    assert (config.CACHE_DIR, os.environ[compiled.VARIABLE], list(temporary.iterdir())) == ("", "", [])


@pytest.mark.parametrize("trap", ["link", "writable by all"])
def test_a_cache_folder_that_is_a_link_or_world_writable_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    _make_other_folders_read_only(monkeypatch, temporary)
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
