"""Benchmarks accept every kind of recording that spectro reads."""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, WriteWav


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Return the function with which all benchmarks find their recordings."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import clips

    found: Callable[..., list[Path]] = clips.spread
    return found


def test_recordings_of_any_format_are_found_and_evenly_sampled(
    wav: WriteWav, tmp_path: Path, spread: Callable[..., list[Path]]
) -> None:
    made = [wav(f"speech/{number:02}.{kind}") for number, kind in enumerate(("flac", "wav", "ogg", "flac"))]
    (tmp_path / "speech/notes.txt").write_text("no recording")
    assert spread(ArgumentParser(), tmp_path) == made
    assert spread(ArgumentParser(), tmp_path, 2) == made[::2]


@pytest.mark.parametrize("limit", [None, 5])
def test_a_folder_without_recordings_ends_with_an_error_that_names_it(
    tmp_path: Path, spread: Callable[..., list[Path]], limit: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        spread(ArgumentParser(), tmp_path, limit)
    assert f"{tmp_path}: holds no recording; name a folder that does" in capsys.readouterr().err
