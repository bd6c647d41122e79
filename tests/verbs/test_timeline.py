import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectro.cli import run_verb
from spectro.errors import PredictionError
from spectro.predict.inputs import stems
from spectro.predict.timeline.formats import Summary, audacity, webvtt
from spectro.predict.timeline.segments import SILENCE, Segment
from spectro.processes import in_processes
from spectro.verbs.timeline import TimelineSettings
from tests.conftest import RATE, World, WriteWav, voice

SEGMENTS = [
    Segment(path="a.wav", start_s=0, end_s=1.5, label=SILENCE),
    Segment(path="a.wav", start_s=1.5, end_s=4.5, label="happy", confidence=0.9, probabilities={"happy": 0.9}),
    Segment(path="a.wav", start_s=3600.25, end_s=3661.5, label="sad", confidence=0.5, probabilities={"sad": 0.5}),
    Segment(path="a.wav", start_s=3661.5, end_s=3664.5, label="happy", confidence=0.6, channel=1),
]


def test_audacity_tracks_are_tab_separated_with_times_in_seconds() -> None:
    assert audacity(SEGMENTS).splitlines() == [
        "1.500000\t4.500000\thappy 0.90",
        "3600.250000\t3661.500000\tsad 0.50",
        "3661.500000\t3664.500000\tchannel 1: happy 0.60",
    ]


def test_webvtt_has_a_header_and_cues_sorted_by_time() -> None:
    text = webvtt(SEGMENTS[::-1])
    assert text.startswith("WEBVTT\n\n")
    times = re.findall(r"^(\d\d:[0-5]\d:[0-5]\d\.\d{3}) --> (\d\d:[0-5]\d:[0-5]\d\.\d{3})$", text, re.MULTILINE)
    assert times == [
        ("00:00:01.500", "00:00:04.500"),
        ("01:00:00.250", "01:01:01.500"),
        ("01:01:01.500", "01:01:04.500"),
    ]


def test_a_summary_lists_label_shares_and_the_most_confident_segments() -> None:
    summary = Summary("a.wav")
    for one in SEGMENTS:
        summary.add(one)
    content = summary.content()
    sound = 3 + 61.25 + 3
    assert content["duration_s"] == 3664.5
    assert content["silence_s"] == 1.5
    assert content["sound_s"] == sound
    assert content["shares"] == {"sad": round(61.25 / sound, 4), "happy": round(6 / sound, 4)}
    assert [(one["label"], one["confidence"]) for one in content["strongest"]] == [
        ("happy", 0.9),
        ("happy", 0.6),
        ("sad", 0.5),
    ]
    many = Summary("b.wav")
    for place in range(100):
        many.add(Segment(path="b.wav", start_s=place, end_s=place + 1, label="sad", confidence=place / 100))
    assert [one["start_s"] for one in many.content()["strongest"]] == [99, 98, 97, 96, 95]


def test_equal_segments_in_two_channels_are_both_listed(world: World, wav: WriteWav, tmp_path: Path) -> None:
    path = wav("dual.wav", np.stack([voice(2.0)] * 2, axis=1))
    out, tracks = tmp_path / "rows.csv", tmp_path / "tracks"
    assert _run(world, path, "--out", out, "--tracks", tracks, "--split_channels", "true") == 0
    strongest = json.loads((tracks / "dual.json").read_text())["strongest"]
    assert [one["channel"] for one in strongest] == [0, 1]
    many = wav("many.wav", np.zeros((RATE, 40), np.float32))
    assert _run(world, many, "--out", out, "--split_channels", "true") == 2
    assert "has 40 channels" in pd.read_csv(out)["error"][0]


def test_track_names_are_relative_to_the_shared_folder_and_unique(tmp_path: Path) -> None:
    below, beside = tmp_path / "a/one.wav", tmp_path / "a/../b/two.wav"
    assert [path.as_posix() for path in stems([below, beside])] == ["a/one", "b/two"]
    assert [path.as_posix() for path in stems([below, tmp_path / "a/one.flac"])] == ["one.wav", "one.flac"]


def test_track_names_differ_even_if_one_is_another_without_its_suffix(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("x.wav", "x.flac", "x.wav.mp3", "y.wav")]
    assert [path.as_posix() for path in stems(paths)] == ["x.wav", "x.flac", "x.wav.mp3", "y"]


def _run(world: World, *arguments: str | Path) -> int:
    return run_verb("timeline", [str(one) for one in (*arguments, "--checkpoint", world.checkpoint, "--device", "cpu")])


@pytest.mark.parametrize("ending", ["csv", "parquet", "json", "jsonl"])
def test_timeline_writes_a_table_and_tracks(world: World, wav: WriteWav, tmp_path: Path, ending: str) -> None:
    sound = np.concatenate([voice(2.0), np.zeros(RATE), voice(3.0)]).astype(np.float32)
    wav("calls/one.wav", sound)
    wav("calls/deep/one.wav", sound[: 2 * RATE])
    out, tracks = tmp_path / f"timeline.{ending}", tmp_path / "tracks"
    assert _run(world, tmp_path / "calls", "--out", out, "--tracks", tracks) == 0
    readers = {
        "csv": pd.read_csv,
        "parquet": pd.read_parquet,
        "json": pd.read_json,
        "jsonl": lambda path: pd.read_json(path, lines=True),
    }
    table = readers[ending](out)
    assert list(table)[:6] == ["path", "channel", "start_s", "end_s", "label", "confidence"]
    assert table.groupby("path")["end_s"].max().tolist() == [2.0, 6.0]
    long = table[table["end_s"].eq(6.0).groupby(table["path"]).transform("any")]
    assert (long["label"] == SILENCE).sum() == 1
    names = sorted(path.relative_to(tracks).as_posix() for path in tracks.rglob("[!.]*.*"))
    assert names == [f"{stem}.{kind}" for stem in ("deep/one", "one") for kind in ("json", "txt", "vtt")]
    assert json.loads((tracks / "one.json").read_text())["silence_s"] == pytest.approx(1, abs=0.05)


def test_foreign_tracks_and_tables_are_not_overwritten(
    world: World, wav: WriteWav, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The foreign files are a transcript beside a recording, and an existing table."""
    path, mine, table = wav("calls/a.wav"), tmp_path / "calls" / "a.txt", tmp_path / "mine.csv"
    for one in (mine, table):
        one.write_text("mine")
    assert _run(world, path, "--tracks", tmp_path / "calls", "--out", tmp_path / "rows.csv") == 2
    assert f"{mine}: already exists, and spectro did not make it; choose another --tracks" in capsys.readouterr().err
    assert _run(world, path, "--out", table) == 2
    assert mine.read_text() == table.read_text() == "mine" and not (tmp_path / "rows.csv").exists()
    for _ in range(2):  # our own files are overwritten
        assert _run(world, path, "--tracks", tmp_path / "tracks", "--out", tmp_path / "rows.csv") == 0


def test_special_characters_in_labels_are_escaped_in_tracks() -> None:
    label = "a<b>\t-->\n\x1b[2J"
    one = Segment(path="a.wav", start_s=0, end_s=1, label=label, confidence=0.5)
    assert audacity([one]) == "0.000000\t1.000000\ta<b>\\t-->\\n\\x1b[2J 0.50\n"
    assert webvtt([one]).splitlines()[3:] == ["a&lt;b&gt;\\t--&gt;\\n\\x1b[2J 0.50"]


def test_a_partly_invalid_recording_keeps_its_rows_and_gets_an_error_row(
    world: World, wav: WriteWav, tmp_path: Path
) -> None:
    samples = voice(5.0)
    samples[-100] = np.nan
    wav("calls/a.wav", samples, subtype="FLOAT")
    wav("calls/b.wav", voice(2.0))
    (tmp_path / "calls/c.wav").write_text("text")
    out = tmp_path / "timeline.csv"
    assert _run(world, tmp_path / "calls", "--out", out) == 1
    table = pd.read_csv(out)
    errors = table.dropna(subset="error")
    assert [Path(path).name for path in errors["path"]] == ["a.wav", "c.wav"]
    assert errors["start_s"].tolist() == [pytest.approx(4, abs=0.05), 0]
    assert table[table["path"].str.endswith("a.wav")]["label"].notna().any()
    assert _run(world, tmp_path / "calls/a.wav", "--out", out) == 1  # its start gives rows
    assert _run(world, tmp_path / "calls/c.wav", "--out", out) == 2
    (tmp_path / "calls/a.wav").unlink()
    (tmp_path / "calls/b.wav").unlink()
    assert _run(world, tmp_path / "calls", "--out", out) == 2


def test_two_processes_write_the_same_rows_and_tracks_as_one(
    world: World, wav: WriteWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(work: Any, items: Any, count: int, *, ordered: bool) -> Any:
        counts.append(count)
        return in_processes(work, items, count, ordered=ordered)

    monkeypatch.setattr("spectro.verbs.timeline.in_processes", counted)
    monkeypatch.setattr("spectro.verbs.timeline.threads", lambda: 2)
    for number, seconds in enumerate((3.0, 2.0, 6.5)):
        wav(f"calls/{number}.wav", voice(seconds))
    (tmp_path / "calls" / "1.wav").write_bytes(b"no recording")
    found = []
    for workers in ("1", "2"):
        out, tracks = tmp_path / f"rows-{workers}.csv", tmp_path / f"tracks-{workers}"
        assert _run(world, tmp_path / "calls", "--out", out, "--tracks", tracks, "--workers", workers) == 1
        names = sorted(path.name for path in tracks.glob("[!.]*"))
        found.append((pd.read_csv(out), {name: (tracks / name).read_text() for name in names}))
    assert counts == [2]
    monkeypatch.setattr("spectro.verbs.timeline.ENOUGH_S", 5.0)
    assert _run(world, tmp_path / "calls", "--out", tmp_path / "long.csv") == 1
    assert counts == [2, 2]
    (one, alone), (two, together) = found
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    assert list(alone) == list(together) and len(alone) == 9
    assert alone["0.txt"].split("\t")[:2] == together["0.txt"].split("\t")[:2]
    assert one["path"].is_monotonic_increasing
    with pytest.raises(PredictionError, match="leave workers out"):
        TimelineSettings(inputs=["calls"], out=tmp_path / "rows.csv", cluster="local", workers=2)
