"""Cutting sounds into pieces that `finetune --sounds` is trained on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spectro.corpora.registry import scan
from tests import scripts

RATE = 8_000


def _write(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.arange(int(seconds * RATE), dtype=np.int16), RATE)


def _cut(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cut_sounds.py", *arguments])
    scripts.load("cut_sounds").main()


def test_pieces_are_spread_over_recordings_and_voices_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, dest = tmp_path / "game", tmp_path / "sounds" / "game-data"
    _write(source / "click.wav", 0.5)
    _write(source / "click.ogg", 0.25)
    _write(source / "empty.wav", 0)
    _write(source / "music/theme.ogg", 4)
    _write(source / "music/long.flac", 30)
    _write(source / "voices/Hello.wav", 1)
    (source / "broken.wav").write_bytes(b"RIFF")
    (source / "level.raw").write_bytes(b"not a sound")
    _cut(monkeypatch, str(source), str(dest), "--without", "hello", "--most", "4")
    pieces = {path.name: soundfile.read(path, dtype="int16")[0] for path in (dest / "game-data").iterdir()}
    assert {name: len(samples) / RATE for name, samples in pieces.items()} == {
        "0001-click-00.wav": 0.25,
        "0002-click-00.wav": 0.5,
        **{f"0004-long-{number:02}.wav": 3 for number in range(4)},
        "0005-theme-00.wav": 3,
    }
    assert [pieces[f"0004-long-{number:02}.wav"][0] for number in range(4)] == [
        np.int64(second * RATE).astype(np.int16) for second in (0, 9, 18, 27)
    ]
    printed = capsys.readouterr()
    assert "7 pieces of 6 recordings; left out: 1" in printed.out
    assert "broken.wav" in printed.err + printed.out
    assert set(scan("folder", dest).clips["emotion"]) == {"game-data"}


def test_pieces_of_recordings_in_floating_point_are_as_loud_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "game").mkdir()
    samples = np.sin(np.arange(RATE))
    soundfile.write(tmp_path / "game/click.wav", samples, RATE, "FLOAT")
    _cut(monkeypatch, str(tmp_path / "game"), str(tmp_path / "out"))
    (piece,) = (soundfile.read(path)[0] for path in (tmp_path / "out").rglob("*.wav"))
    np.testing.assert_allclose(piece, samples, atol=1e-4)


def test_wrong_arguments_end_with_an_error_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, expected in (
        ([str(tmp_path / "missing"), "out"], "missing: not a folder"),
        ([str(tmp_path), "out", "--most", "0"], "--most must be at least 1"),
        ([str(tmp_path), "out", "--without", "("], "is not a regular expression"),
        ([str(tmp_path), str(tmp_path)], "already exists"),
    ):
        with pytest.raises(SystemExit):
            _cut(monkeypatch, *arguments)
        assert expected in capsys.readouterr().err
