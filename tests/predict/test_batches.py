import csv
import io
import json
import os
import re
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from spectro.cli import run_verb
from spectro.errors import PredictionError
from spectro.predict.batches import predict_rows
from spectro.predict.inputs import expand
from spectro.predict.output.tables import open_table
from spectro.predict.predictor import Predictor
from tests.conftest import RATE, World, WriteWav, voice

NAMES = [
    "empty.wav", "header.wav", "text.wav", "nan.wav", "no channels.wav", "1 Hz.wav", "two hours.wav", "folder.wav",
    "broken link.wav", "silent.wav", "tiny.wav", "text.mp3", "cut.flac", "line\nbreak.wav", "名前.wav", "secret.wav",
]  # fmt: skip


def _make_bad(folder: Path) -> list[Path]:
    """Make a file for every way in which a file in a folder of recordings can be bad."""
    folder.mkdir(parents=True)
    header = b"RIFF" + struct.pack("<I", 32_036) + b"WAVEfmt "
    data = b"data" + struct.pack("<I", 32_000) + (voice() * 20000).astype("<i2").tobytes()
    contents = {
        "empty.wav": b"",
        "header.wav": header[:18],
        "text.wav": b"these are words",
        "text.mp3": b"these are words",
        "line\nbreak.wav": b"these are words",
        "名前.wav": b"these are words",
        "no channels.wav": header + struct.pack("<IHHIIHH", 16, 1, 0, RATE, 0, 0, 16) + data,
        "1 Hz.wav": header + struct.pack("<IHHIIHH", 16, 1, 1, 1, 2, 2, 16) + data,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    samples = voice()
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "tiny.wav", samples[:50], RATE)
    soundfile.write(folder / "cut.flac", samples, RATE)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:5000])
    samples[5] = np.nan
    soundfile.write(folder / "nan.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(folder / "two hours.wav", np.zeros(7200 * 4000, np.int16), 4000, subtype="PCM_U8")
    (folder / "folder.wav").mkdir()
    (folder / "broken link.wav").symlink_to(folder / "gone")
    soundfile.write(folder / "secret.wav", voice(), RATE)
    (folder / "secret.wav").chmod(0)
    return [folder / name for name in NAMES]


@pytest.fixture
def messy(world: World, tmp_path: Path) -> Path:
    """Good recordings in several folders, some with strange names, and every kind of bad file among them."""
    root = tmp_path / "messy"
    good = sorted(world.corpus.rglob("*.wav"))
    for number, path in enumerate(good):
        target = root / f"deep {number % 3}" / f"é{number}\n.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    _make_bad(root / "deep 1" / "bad")
    shutil.copy(good[0], root / "deep 1" / "bad" / "folder.wav" / "inside.wav")
    (root / "deep 1" / "loop").symlink_to(root)
    (root / "notes.txt").write_text("not a recording")
    return root


def _run(world: World, *arguments: str) -> int:
    return run_verb("predict", [*arguments, "--checkpoint", str(world.checkpoint), "--device", "cpu"])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_messy_folder_gives_a_row_for_every_recording(
    world: World, messy: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"rows.{ending}"
    assert _run(world, str(messy), "--out", str(out), "--batch_size", "5") == 1
    table = pd.read_csv(out, keep_default_na=False) if ending == "csv" else pd.read_parquet(out)
    bad = {str(messy / "deep 1" / "bad" / name) for name in NAMES}
    if os.geteuid() == 0:
        bad.remove(str(messy / "deep 1" / "bad" / "secret.wav"))  # root can read everything
    failed = table[table["error"] != ""]
    assert set(failed["path"]) == bad
    assert (failed["label"] == "").all()
    classified = table[table["error"] == ""]
    assert len(classified) == len(NAMES) - len(bad) + len(list(world.corpus.rglob("*.wav"))) + 1
    assert set(classified["label"]) <= set(world.trained.about.labels)
    assert table["path"].is_unique
    assert (classified["end_s"].astype(float) > 0.9).all()
    assert f"{len(bad)} could not be used" in capsys.readouterr().err


def test_every_bad_file_gets_an_error_that_gives_the_reason(world: World, tmp_path: Path) -> None:
    paths = _make_bad(tmp_path / "bad")
    rows = predict_rows(Predictor(world.checkpoint, device="cpu"), paths, batch_size=4)
    errors = {path.name: row.error for path, row in zip(paths, rows, strict=True)}
    expected = {
        "empty.wav": "is empty", "header.wav": "not a recording", "text.wav": "not a recording", "nan.wav": "NaN",
        "no channels.wav": "not a recording", "1 Hz.wav": "1 Hz", "two hours.wav": "lasts 7200.0 s",
        "folder.wav": "is a folder", "broken link.wav": "broken link", "silent.wav": "silent", "tiny.wav": "too short",
        "text.mp3": "not a recording", "cut.flac": "not a recording", "line\nbreak.wav": "not a recording",
        "名前.wav": "not a recording",
    }  # fmt: skip
    for name, reason in expected.items():
        assert reason in errors[name], name


def test_batched_rows_equal_single_predictions_in_sorted_order(world: World) -> None:
    predictor = Predictor(world.checkpoint, device="cpu")
    rows = list(predictor.predict_folder(world.corpus, batch_size=7))
    assert [row.path for row in rows] == [str(path) for path in sorted(world.corpus.rglob("*.wav"))]
    for row in rows[::9]:
        alone = predictor.predict_wav(row.path)
        assert row.label == alone.label
        assert row.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert row.end_s == pytest.approx(soundfile.info(row.path).duration, abs=1e-3)


def test_rows_are_computed_lazily(world: World) -> None:
    paths = sorted(world.corpus.rglob("*.wav"))
    asked: list[Path] = []

    def watch() -> object:
        for path in paths:
            asked.append(path)
            yield path

    rows = predict_rows(Predictor(world.checkpoint, device="cpu"), watch(), batch_size=4)  # type: ignore[arg-type]
    next(rows)
    assert len(asked) <= 8


def test_lists_pictures_and_recordings_are_accepted_and_deduplicated(world: World, tmp_path: Path) -> None:
    recordings = sorted(world.corpus.rglob("*.wav"))[:3]
    picture = next((world.images / "images").glob("*_0.png"))
    (tmp_path / "list.txt").write_text(f"{recordings[0]}\n\n{os.path.relpath(recordings[1], tmp_path)}\n")
    pd.DataFrame({"path": [str(recordings[2])], "other": [1]}).to_csv(tmp_path / "list.csv", index=False)
    out = tmp_path / "rows.csv"
    inputs = [str(tmp_path / "list.txt"), str(tmp_path / "list.csv"), str(picture), str(recordings[0])]
    assert _run(world, *inputs, "--out", str(out)) == 0
    assert len(pd.read_csv(out)) == 4  # a recording that is named twice is classified once


def test_rows_go_to_stdout_as_csv_by_default(world: World, capsys: pytest.CaptureFixture[str], wav: WriteWav) -> None:
    assert _run(world, str(wav("a,b.wav"))) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 1
    assert list(rows[0])[:5] == ["path", "start_s", "end_s", "label", "confidence"]
    assert list(rows[0])[-1] == "error"
    assert float(rows[0][f"p_{rows[0]['label']}"]) == pytest.approx(float(rows[0]["confidence"]))


EVIL = [
    "=1+1.wav",
    "+cmd.wav",
    "@sum.wav",
    "-x.wav",
    "a\rb.wav",
    "c\nd.wav",
    "\t=e.wav",
    "\x1b[2J\u202e.wav",
    'q"u,.wav',
]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_file_names_with_special_characters_survive_every_table_format(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (tmp_path / "calls").mkdir()
    for name in EVIL:
        (tmp_path / "calls" / name).write_bytes(b"")
    shutil.copy(sorted(world.corpus.rglob("*.wav"))[0], tmp_path / "calls" / "good.wav")
    monkeypatch.chdir(tmp_path / "calls")
    out = tmp_path / f"rows.{ending}"
    assert _run(world, ".", "--out", str(out)) == 1
    if ending == "csv":
        with out.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert not any(re.match(r"[=+@\t\r-]", cell) for row in rows for cell in row.values())
    elif ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = (pd.read_parquet(out) if ending == "parquet" else pd.read_json(out)).to_dict("records")
    assert {row["path"] for row in rows} == {str(tmp_path / "calls" / name) for name in (*EVIL, "good.wav")}
    assert all(row["error"].isprintable() for row in rows)


def test_control_characters_are_escaped_on_a_terminal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "\x1b[2J.wav", tmp_path / "a\rb.wav"]
    for path in paths:
        path.write_bytes(b"")
    assert _run(world, *map(str, paths)) == 2
    piped = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [row["path"] for row in piped] == [str(path) for path in paths]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    assert _run(world, *map(str, paths)) == 2
    captured = capsys.readouterr()
    assert r"\x1b[2J.wav" in captured.out and r"a\rb.wav" in captured.out
    assert not {"\x1b", "\r"} & set(captured.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all: does not exist"),
        (["EMPTY"], "no recording in"),
        (["CLIP", "--out", "rows.xlsx"], "neither .csv, .parquet, .json nor .jsonl"),
        (["CLIP", "--out", "/proc/nowhere/rows.csv"], "No such file or directory"),
        (["CLIP", "--batch_size", "0"], "batch_size is 0"),
    ],
)
def test_invalid_arguments_end_with_a_single_line_error_and_exit_code_2(
    world: World, tmp_path: Path, wav: WriteWav, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "CLIP": str(wav())}
    assert _run(world, *(places.get(argument, argument) for argument in arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spectro predict: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_the_exit_code_is_2_when_no_recording_is_usable(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    assert _run(world, str(tmp_path / "a.wav"), "--out", str(tmp_path / "rows.csv")) == 2


def test_empty_inputs_and_lists_without_a_path_column_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="name recordings, folders or lists"):
        expand([])
    (tmp_path / "list.csv").write_text("file\na.wav\n")
    with pytest.raises(PredictionError, match="not a readable list"):
        list(expand([tmp_path / "list.csv"]))


def test_seconds_keep_their_milliseconds_in_csv(tmp_path: Path) -> None:
    with open_table(tmp_path / "rows.csv", ["start_s", "end_s", "p"]) as table:
        table.add([{"start_s": 1234.567, "end_s": 14399.875, "p": 0.123456789}])
    assert (tmp_path / "rows.csv").read_text().splitlines()[1] == "1234.567,14399.875,0.123457"


def test_follow_rejects_a_negative_settle_time() -> None:
    assert run_verb("predict", ["x.wav", "--follow", "true", "--settle_s", "-1"]) == 2
