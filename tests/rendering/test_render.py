import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from spectro.audio import augment, recording
from spectro.errors import RenderError
from spectro.files import held
from spectro.picture import png, spectrogram
from spectro.rendering import render as rendering
from spectro.rendering.index import read_index
from spectro.rendering.render import RenderSettings, render
from tests import processes
from tests.conftest import RATE, SMALL, World, voice, write_corpus


def _settings(source: Path, out: Path, **changes: object) -> RenderSettings:
    return replace(
        RenderSettings(corpus="synthetic", source=source, out=out, copies=1, spec=SMALL, workers=1),
        **changes,  # type: ignore[arg-type]
    )


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_index_suffices_to_reproduce_every_picture(world: World) -> None:
    index, spec = read_index(world.images)
    assert spec == SMALL
    assert len(index) == 8 * 3 * 2 * 3
    assert set(index["copy"]) == {0, 1, 2}
    for row in index.sample(12, random_state=0).itertuples():
        picture = png.read(world.images / row.image, spec)
        assert picture.text["clip"] == row.clip_id
        samples = recording.read(row.path, sample_rate=spec.sample_rate, trim_db=spec.trim_db)
        if row.copy == 0:
            assert (row.augmentation, row.parameters) == ("", "{}")
        else:
            parameters = json.loads(row.parameters)
            assert row.augmentation == "+".join(parameters)
            drawn = augment.sample(augment.AugmentSettings(), row.clip_id, row.copy)
            assert drawn.parameters == parameters
            samples = augment.apply(samples, spec.sample_rate, drawn)
        np.testing.assert_array_equal(picture.pixels, spectrogram.render(samples, spec))


def test_the_output_does_not_depend_on_the_number_of_workers(world: World, tmp_path: Path) -> None:
    out = tmp_path / "two"
    render(_settings(world.corpus, out, copies=2, workers=2))
    assert _contents(out) == _contents(world.images)


def test_a_finished_rendering_is_reused(world: World, tmp_path: Path) -> None:
    out = tmp_path / "images"
    first = render(_settings(world.corpus, out))
    before = {path: path.stat().st_ino for path in out.glob("images/*")}
    again = render(_settings(world.corpus, out))
    assert (first.reused, again.reused) == (0, again.images)
    assert {path: path.stat().st_ino for path in out.glob("images/*")} == before


def test_pictures_on_another_machines_disk_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    corpus, out = write_corpus(tmp_path / "corpus", speakers=1), tmp_path / "images"

    def elsewhere(work: Callable[[object], object], items: Iterable[object], _cluster: object) -> Iterator[object]:
        for item in items:
            outcomes = work(item)
            shutil.rmtree(out / "images")
            yield outcomes

    monkeypatch.setattr(rendering, "on_cluster", elsewhere)
    with pytest.raises(RenderError, match=r"images/.*png: a machine of the cluster rendered it, but it is not here"):
        render(_settings(corpus, out, cluster="auto"))
    assert not (out / "index.parquet").exists()


def test_only_missing_or_changed_pictures_are_rendered_again(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", speakers=2), tmp_path / "images"
    total = render(_settings(corpus, out)).images
    recordings = sorted(corpus.rglob("*.wav"))
    os.utime(recordings[0], (1, 1))  # the content is the same
    content, status = bytearray(recordings[1].read_bytes()), recordings[1].stat()
    content[5000] ^= 3
    recordings[1].write_bytes(content)
    os.utime(recordings[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    pictures = sorted(out.glob("images/*.png"))
    pictures[-1].unlink()
    pictures[-3].write_bytes(pictures[-3].read_bytes()[:100])
    again = render(_settings(corpus, out))
    assert total - again.reused == 2 + 1 + 1
    assert render(_settings(corpus, out)).reused == total


def test_an_index_does_not_outlast_the_pictures_that_it_describes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", speakers=2), tmp_path / "images"
    render(_settings(corpus, out))
    first = min(corpus.rglob("*.wav"))
    content = bytearray(first.read_bytes())
    content[5000] ^= 3
    first.write_bytes(content)
    encode = png.encode

    def interrupted(*arguments: object, **text: str) -> bytes:
        if text["copy"] == "1":
            raise KeyboardInterrupt
        return encode(*arguments, **text)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(png, "encode", interrupted)
        render(_settings(corpus, out))
    with pytest.raises(RenderError, match=r"holds no readable index\.parquet"):
        read_index(out)
    render(_settings(corpus, out))
    assert read_index(out)[0]["content_mark"].nunique() == 12


def test_more_copies_are_added_to_an_existing_rendering(world: World, tmp_path: Path) -> None:
    out = tmp_path / "images"
    fewer = render(_settings(world.corpus, out, copies=1)).images
    assert render(_settings(world.corpus, out, copies=2)).reused == fewer
    assert _contents(out) == _contents(world.images)


def test_other_settings_are_refused_without_overwrite(world: World, tmp_path: Path) -> None:
    out = tmp_path / "images"
    render(_settings(world.corpus, out))
    other = replace(SMALL, hop_length=300)
    with pytest.raises(RenderError, match=r"other settings \(spec\.hop_length 320 -> 300\).*--overwrite true"):
        render(_settings(world.corpus, out, spec=other))
    anew = render(_settings(world.corpus, out, spec=other, overwrite=True))
    assert anew.reused == 0
    assert read_index(out)[1] == other


def test_bad_clips_are_listed_and_the_others_are_rendered(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", speakers=2), tmp_path / "images"
    bad = sorted(corpus.rglob("*.wav"))[:3]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(b"text")
    bad[2].write_bytes(bad[2].read_bytes()[:2000])
    rendering = render(_settings(corpus, out))
    assert (rendering.images, rendering.failures) == (2 * (12 - 3), 3)
    failures = pd.read_csv(out / "failures.csv")
    assert failures["path"].tolist() == [str(path) for path in bad]
    for reason, expected in zip(failures["reason"], ("empty", "not a recording", "cut off"), strict=True):
        assert expected in reason
    write_corpus(tmp_path / "corpus", speakers=2)
    repaired = render(_settings(corpus, out))
    assert (repaired.images, repaired.failures) == (24, 0)
    assert len(pd.read_csv(out / "failures.csv")) == 0


def test_copies_can_be_limited_to_the_training_clips_of_a_protocol(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", speakers=4), tmp_path / "images"
    render(_settings(corpus, out, copies=2, protocol="loso", fold=1))
    copies = read_index(out)[0].groupby("speaker")["copy"].max()
    assert copies["2"] == 0
    assert (copies == 2).sum() == 2  # one speaker is for testing, one for validation


def test_a_corpus_without_a_readable_clip_raises_an_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", speakers=1)
    for path in corpus.rglob("*.wav"):
        path.write_bytes(b"text" + bytes(path.name, "ascii"))
    with pytest.raises(RenderError, match="none of 6 clips could be rendered; the first error"):
        render(_settings(corpus, tmp_path / "images"))
    with pytest.raises(RenderError, match="copies is -1"):
        render(_settings(corpus, tmp_path / "images", copies=-1))


def test_a_missing_or_inconsistent_rendering_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"run scripts/render\.py first"):
        read_index(tmp_path)
    out = tmp_path / "images"
    render(_settings(world.corpus, out))
    (out / "spec.json").write_text(json.dumps(replace(SMALL, fmax=7000.0).to_dict()))
    with pytest.raises(RenderError, match="disagree; render again"):
        read_index(out)


def test_a_killed_rendering_resumes_and_yields_the_same_bytes(world: World, tmp_path: Path) -> None:
    """The process is killed (SIGKILL) repeatedly, each time once more pictures exist."""
    out, log = tmp_path / "images", tmp_path / "log"
    arguments = [
        *("render", "--corpus", "synthetic", "--source", str(world.corpus), "--out", str(out)),
        *("--copies", "2", "--workers", "1", f"--spec={world.images / 'spec.json'}"),
    ]
    for wanted in (10, 60):
        processes.killed(arguments, log, processes.has_files(out, "images/*.png", wanted))
        assert not (out / "index.parquet").exists()
    render(_settings(world.corpus, out, copies=2))
    assert _contents(out) == _contents(world.images)


def test_two_renderings_cannot_write_to_the_same_folder(tmp_path: Path) -> None:
    settings = RenderSettings(source=tmp_path / "corpus", corpus="folder", out=tmp_path / "out")
    (tmp_path / "corpus" / "happy").mkdir(parents=True)
    soundfile.write(tmp_path / "corpus" / "happy" / "a.wav", voice(), RATE)
    with held(tmp_path / "out" / ".lock"), pytest.raises(RenderError, match="another rendering writes there"):
        render(settings)


def test_a_folder_that_is_not_a_rendering_is_left_untouched(world: World, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    (out / "images").mkdir(parents=True)
    (out / "images" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(RenderError, match=r"images: already exists, and spectro did not make it"):
        render(_settings(world.corpus, out))
    assert _contents(out) == {"images/holiday.png": b"mine"}


def test_the_table_of_failures_reads_back_with_unusual_file_names(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "images"
    for name in ("good.wav", "=1+1.wav", "a\rb\n.wav", "\x1b[2J.wav"):
        (corpus / "happy").mkdir(parents=True, exist_ok=True)
        soundfile.write(corpus / "happy" / "x.wav", voice() if name == "good.wav" else np.zeros(RATE), RATE)
        (corpus / "happy" / "x.wav").rename(corpus / "happy" / name)
    (corpus / "happy" / "a\rb\n.wav").write_bytes(b"text")
    (corpus / "happy" / "=1+1.wav").write_bytes(b"other text")
    assert render(_settings(corpus, out, corpus="folder")).failures == 3
    with (out / "failures.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = {"=1+1.wav", "a\rb\n.wav", "\x1b[2J.wav"}
    assert {row["path"] for row in rows} == {str(corpus / "happy" / name) for name in names}
    assert all(row["reason"].isprintable() for row in rows)


def test_an_interrupt_prints_a_single_line_and_leaves_no_partial_files(world: World, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the group."""
    out = tmp_path / "images"
    command = [
        *(sys.executable, "-m", "spectro", "render", "--corpus", "synthetic", "--source", str(world.corpus)),
        *("--out", str(out), "--copies", "40", "--workers", "2", f"--spec={world.images / 'spec.json'}"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any(out.glob("images/*.png")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)  # ends when no process of the group holds the pipe any more
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    told = ("labels:", "rendering:")
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip() and not line.startswith(told)]
    assert lines == ["spectro render: interrupted; run the same command again to continue"]
    assert process.returncode == 130
    assert not (out / "index.parquet").exists() and not list(out.glob("images/.*"))
