"""Benchmarks accept every kind of recording that spectro reads, and adapt to no speaker that they measure."""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(("speakers", "count"), [(24, 5), (2, 2)])
def test_a_speakers_clips_are_all_in_one_group(speakers: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import strangers

    of = np.array([f"corpus/{clip % speakers:02}" for clip in range(7 * speakers)])
    groups = strangers.groups(of)
    assert len(groups) == count
    assert sorted(np.concatenate(groups)) == [*range(len(of))]
    assert sum(len(set(of[places])) for places in groups) == speakers
