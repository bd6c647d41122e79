import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from spectro.errors import PredictionError, WorkerError
from spectro.files import held, sign
from spectro.outputs import lock_of
from spectro.predict.network import Network
from spectro.predict.output.journal import Journal, beside
from spectro.predict.predictor import Predictor
from spectro.processes import in_processes
from spectro.verbs import predict
from spectro.verbs.predict import PredictSettings, run
from tests import processes
from tests.conftest import REPOSITORY, World, WriteWav, voice


def settings(world: World, out: Path, *inputs: Path, **changes: object) -> PredictSettings:
    defaults: dict[str, object] = {"checkpoint": world.checkpoint, "device": "cpu", "batch_size": 4}
    return PredictSettings(inputs=[str(one) for one in inputs], out=out, **(defaults | changes))  # type: ignore[arg-type]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings that were actually rendered."""
    names: list[str] = []
    original = Predictor.render

    def render(self: Predictor, source: Path) -> object:
        names.append(Path(source).name)
        return original(self, source)

    monkeypatch.setattr(Predictor, "render", render)
    return names


def _has_lines(path: Path, count: int) -> bool:
    return path.exists() and len(path.read_text().splitlines()) >= count


def _slow_down() -> None:
    original = Predictor.render
    Predictor.render = lambda *given: (time.sleep(0.05), original(*given))[1]  # type: ignore[method-assign]


def test_a_killed_run_resumes_and_writes_the_same_table(world: World, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert run(settings(world, whole, world.corpus)) == 0
    arguments = ["--checkpoint", str(world.checkpoint), "--out", str(killed), "--batch_size", "2", "--device", "cpu"]
    entered_5 = partial(_has_lines, beside(killed), 6)
    processes.killed(["predict", str(world.corpus), *arguments], tmp_path / "log", entered_5, _slow_down)
    entered = len(beside(killed).read_text().splitlines()) - 1
    assert 0 < entered < len(pd.read_csv(whole))
    assert run(settings(world, killed, world.corpus, batch_size=4)) == 0
    one, other = pd.read_csv(whole), pd.read_csv(killed)
    pd.testing.assert_frame_equal(one, other, atol=1e-5)  # results of other batch sizes differ in the last digits
    assert one["path"].is_unique


def test_finished_recordings_are_predicted_again_only_without_resume(
    world: World, tmp_path: Path, rendered: list[str]
) -> None:
    out = tmp_path / "rows.csv"
    assert run(settings(world, out, world.corpus)) == 0
    before, first = len(rendered), out.read_bytes()
    assert run(settings(world, out, world.corpus)) == 0
    assert len(rendered) == before
    assert out.read_bytes() == first
    assert run(settings(world, out, world.corpus, resume=False)) == 0
    assert len(rendered) == 2 * before


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_an_edited_table_is_not_replaced(world: World, tmp_path: Path, wav: WriteWav, name: str) -> None:
    path, out = wav(), tmp_path / name
    assert run(settings(world, out, path)) == 0
    assert run(settings(world, out, path)) == 0
    edited = out.read_bytes() + b"\n"
    out.write_bytes(edited)
    with pytest.raises(
        PredictionError, match=rf"{re.escape(name)}: was changed since spectro wrote it; choose another"
    ):
        run(settings(world, out, path))
    assert out.read_bytes() == edited
    out.unlink()
    assert run(settings(world, out, path)) == 0


def test_a_rerun_predicts_new_and_changed_recordings_and_torn_journal_lines(
    world: World, tmp_path: Path, wav: WriteWav, rendered: list[str]
) -> None:
    folder, out = tmp_path / "clips", tmp_path / "rows.csv"
    for name in "abcde":
        wav(f"clips/{name}.wav", voice(1 + ord(name) % 5 / 10))
    assert run(settings(world, out, folder)) == 0
    lines = beside(out).read_text().splitlines(keepends=True)
    beside(out).write_text("".join(lines[:-1]) + lines[-1][:-20])  # e's line is cut off
    wav("clips/b.wav", voice(2.5))
    (folder / "c.wav").unlink()
    wav("clips/f.wav", voice(1.0))
    rendered.clear()
    assert run(settings(world, out, folder)) == 0
    assert sorted(rendered) == ["b.wav", "e.wav", "f.wav"]
    table = pd.read_csv(out)
    assert sorted(Path(path).name for path in table["path"]) == ["a.wav", "b.wav", "d.wav", "e.wav", "f.wav"]
    assert table.set_index(table["path"].map(lambda path: Path(path).name))["end_s"]["b.wav"] == 2.5


def test_rows_from_another_checkpoint_or_other_settings_are_not_reused(
    world: World, tmp_path: Path, wav: WriteWav, rendered: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = wav(), tmp_path / "rows.csv"
    run(settings(world, out, path))
    run(settings(world, out, path, batch_size=1))
    assert len(rendered) == 1  # the batch size does not change results
    run(settings(world, out, path, min_margin=1.0))
    assert len(rendered) == 2
    assert "1 rows of another checkpoint, other settings or an earlier version" in capsys.readouterr().err
    assert pd.read_csv(out)["label"].tolist() == ["unsure"]
    run(settings(world, out, path, checkpoint=REPOSITORY / "checkpoints/mobilenet-ravdess"))
    assert len(rendered) == 3
    assert "p_disgust" in pd.read_csv(out)


def test_a_previously_missing_recording_is_retried(world: World, tmp_path: Path, wav: WriteWav) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "rows.csv"
    listed.write_text("late.wav\n")
    assert run(settings(world, out, listed)) == 2
    wav("late.wav")
    assert run(settings(world, out, listed)) == 0
    assert pd.read_csv(out)["error"].isna().all()


def test_a_failed_recording_is_retried_even_with_unchanged_size_and_time(
    world: World, tmp_path: Path, wav: WriteWav, rendered: list[str]
) -> None:
    """The cause of a failure may leave a file's size and time unchanged."""
    path, out = wav("clips/a.wav"), tmp_path / "rows.csv"
    wav("clips/b.wav")
    whole, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert run(settings(world, out, path.parent)) == 1
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    rendered.clear()
    assert run(settings(world, out, path.parent)) == 0
    assert rendered == ["a.wav"] and len(pd.read_csv(out)) == 2


def test_a_run_without_resume_does_not_overwrite_a_locked_table(world: World, tmp_path: Path, wav: WriteWav) -> None:
    path, out = wav(), tmp_path / "rows.csv"
    assert run(settings(world, out, path)) == 0
    before = out.read_bytes(), beside(out).read_bytes()
    with held(lock_of(out)), pytest.raises(PredictionError, match=r"rows\.csv: another run writes there"):
        run(settings(world, out, path, resume=False))
    assert (out.read_bytes(), beside(out).read_bytes()) == before


def test_recordings_with_non_utf8_names_are_resumed(
    world: World, tmp_path: Path, wav: WriteWav, rendered: list[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    wav().rename(folder / os.fsdecode(b"\xff\xfe.wav"))
    for _ in range(2):
        assert run(settings(world, tmp_path / "rows.csv", folder)) == 0
    assert len(rendered) == 1


@pytest.mark.parametrize("out", ["rows.parquet", "rows.json", "rows.jsonl", "shards"])
def test_other_table_formats_and_shards_are_rebuilt_from_the_journal(
    world: World, tmp_path: Path, out: str, rendered: list[str]
) -> None:
    tables = []
    for _ in range(2):
        assert run(settings(world, tmp_path / out, world.corpus, shard_rows=20, embeddings=True)) == 0
        place = tmp_path / out
        if place.is_dir():
            assert sorted(part.name for part in place.iterdir()) == [f"part-{n:05}.parquet" for n in range(3)]
            tables.append(pd.read_parquet(place))
        elif place.suffix == ".parquet":
            tables.append(pd.read_parquet(place))
        else:
            tables.append(pd.read_json(place, lines=place.suffix == ".jsonl"))
    pd.testing.assert_frame_equal(*tables)
    assert len(rendered) == len(tables[0]) == 48
    one = Predictor(world.checkpoint, device="cpu").predict_wav(tables[0]["path"][7])
    assert list(tables[0]["embedding"][7]) == pytest.approx(one.embedding.tolist(), abs=1e-5)
    assert len(one.embedding) == world.trained.net.head[-1].in_features


def test_embeddings_in_csv_are_rejected() -> None:
    with pytest.raises(PredictionError, match=r"name a \.parquet"):
        PredictSettings(inputs=["a.wav"], embeddings=True, out=Path("rows.csv"))


def test_a_journal_keeps_no_entry_for_a_recording_without_a_signature(tmp_path: Path) -> None:
    place, path = tmp_path / "journal", tmp_path / "a.wav"
    path.write_bytes(b"a")
    with Journal(place, "one", [path]) as journal:
        journal.add([(path, sign(path), {"path": "a"}), (tmp_path / "b.wav", None, {"path": "b"})])
    with Journal(place, "one", [path, tmp_path / "b.wav"]) as journal:
        assert journal.done == {str(path): sign(path)}
        assert list(journal.records()) == [[{"path": "a"}]]
    assert json.loads(place.read_text().splitlines()[0]) == {"identity": "one"}


def test_a_followed_folder_keeps_rows_of_deleted_but_not_changed_recordings(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"1")
    with Journal(tmp_path / "journal", "one", paths) as journal:
        journal.add((path, sign(path), {"path": path.name}) for path in paths)
    paths[0].unlink()
    paths[1].write_bytes(b"22")
    with Journal(tmp_path / "journal", "one", None) as journal:
        assert list(journal.records()) == [[{"path": "a"}, {"path": "c"}]]


@pytest.mark.parametrize("embeddings", [False, True])
def test_two_worker_processes_write_the_same_rows_as_a_single_process(
    world: World, tmp_path: Path, embeddings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, counts, before = [], list[int](), predict.in_processes

    def counted(work: Callable[..., object], items: object, count: int, **options: bool) -> object:
        counts.append(count)
        return before(work, items, count, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "in_processes", counted)
    for workers in (1, 2):
        out = tmp_path / f"{workers}.parquet"
        assert run(settings(world, out, world.corpus, workers=workers, engine="onnx", embeddings=embeddings)) == 0
        tables.append(pd.read_parquet(out))
    one, two = tables
    assert counts == [2] and len(one) == 48 and list(two["path"]) == sorted(two["path"])
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_large_inputs_use_all_cores_and_small_inputs_a_single_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "threads", lambda: 4)
    for engine, few, changes, expected in (
        ("onnx", predict.FEW, {}, 4),
        ("onnx", predict.FEW - 1, {}, 1),
        ("torch", predict.FEW, {}, 1),
        ("torch", predict.FEW_FOR_TORCH, {}, 4),
        ("onnx", predict.FEW, {"workers": 2}, 2),
        ("onnx", predict.FEW, {"follow": True}, 1),
    ):
        asked = settings(world, Path("rows.csv"), engine=engine, **changes)
        assert predict._processes(asked, Network.of(asked), few) == expected, (engine, few, changes)


def test_a_network_caches_its_predictor_and_a_new_network_loads_it_again(world: World, tmp_path: Path) -> None:
    asked = settings(world, tmp_path / "rows.csv", engine="torch")
    first = Network.of(asked)
    assert first.predictor() is first.predictor()
    assert pickle.loads(pickle.dumps(first)).predictor() is first.predictor()
    assert Network.of(asked).predictor() is not first.predictor()


def die(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_raises_a_worker_error() -> None:
    with pytest.raises(WorkerError, match="a worker process was killed, most likely because memory ran out"):
        list(in_processes(die, [1, 2], 2))


def test_writing_shards_removes_stale_shards_but_keeps_foreign_files(
    world: World, tmp_path: Path, wav: WriteWav
) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    (out / "part-00000-abc.snappy.parquet").write_bytes(b"another's")
    assert run(settings(world, out, wav())) == 0
    (out / "part-00007.parquet").write_bytes(b"stale")
    assert run(settings(world, out, wav())) == 0
    assert sorted(path.name for path in out.iterdir()) == ["part-00000-abc.snappy.parquet", "part-00000.parquet"]
    assert beside(Path()).name == f".{Path.cwd().name}.journal"


def test_foreign_tables_and_journals_are_not_overwritten(world: World, tmp_path: Path, wav: WriteWav) -> None:
    shards, table, path = tmp_path / "shards", tmp_path / "mine.csv", wav()
    shards.mkdir()
    (shards / "part-00000.parquet").write_bytes(b"another's")
    table.write_text("path,note\n")
    for out in (shards, table):
        with pytest.raises(PredictionError, match="already exists, and spectro did not make it; choose another --out"):
            run(settings(world, out, path))
    assert (shards / "part-00000.parquet").read_bytes() == b"another's" and table.read_text() == "path,note\n"
    beside(table).write_text("my journal\n")
    with pytest.raises(PredictionError, match=r"\.mine\.csv\.journal: is not a spectro journal"):
        run(settings(world, table, path))
    assert beside(table).read_text() == "my journal\n"


def test_an_input_list_is_not_overwritten(world: World, tmp_path: Path, wav: WriteWav) -> None:
    listed, link = tmp_path / "list.csv", tmp_path / "link.csv"
    listed.write_text(f"path\n{wav()}\n")
    link.symlink_to(listed)
    before = listed.read_bytes()
    for out in (listed, link):
        with pytest.raises(PredictionError, match="is an input, and would be overwritten; choose another --out"):
            run(settings(world, out, listed))
    assert listed.read_bytes() == before


def test_rows_are_not_reused_for_other_or_replaced_files(
    world: World,
    tmp_path: Path,
    wav: WriteWav,
    rendered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A row is not reused for another folder's file of equal relative path, size and time, nor for a replaced file."""
    out = tmp_path / "rows.csv"
    first, second = wav("one/calls/1.wav", voice(1.0)), wav("two/calls/1.wav", voice(1.0, pitch=300.0))
    status = first.stat()
    os.utime(second, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first.stat().st_size == second.stat().st_size
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        assert run(settings(world, out, Path("calls/1.wav"))) == 0
    assert len(rendered) == 2
    assert pd.read_csv(out)["path"].tolist() == [str(second)]
    shutil.copy2(first, tmp_path / "new")
    (tmp_path / "new").replace(second)
    assert second.stat().st_mtime_ns == status.st_mtime_ns
    capsys.readouterr()
    assert run(settings(world, out, Path("calls/1.wav"))) == 0
    assert len(rendered) == 3
    assert "1 of 1 recordings classified in" in capsys.readouterr().err
    wav("two/calls/2.wav")
    assert run(settings(world, out, Path("calls"))) == 0
    assert len(rendered) == 4
    assert "2 of 2 recordings classified (1 kept from an earlier run) in" in capsys.readouterr().err


def test_rows_of_journals_from_an_earlier_version_are_recomputed(
    world: World, tmp_path: Path, wav: WriteWav, rendered: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier version signed recordings only by size and modification time."""
    path, out = wav(), tmp_path / "rows.csv"
    assert run(settings(world, out, path)) == 0
    head, line = beside(out).read_text().splitlines()
    entry = json.loads(line)
    old = {**entry, "signature": entry["signature"][:2]}
    gone = {**old, "path": "gone.wav", "row": {**old["row"], "path": "gone.wav"}}
    beside(out).write_text("".join(f"{one}\n" for one in (head, json.dumps(old), json.dumps(gone))))
    with Journal(beside(out), json.loads(head)["identity"], None) as journal:  # as for a watched folder
        assert [row["path"] for rows in journal.records() for row in rows] == ["gone.wav"]
    beside(out).write_text("".join(f"{one}\n" for one in (head, json.dumps(old))))
    assert run(settings(world, out, path)) == 0
    assert len(rendered) == 2
    assert "1 rows of another checkpoint, other settings or an earlier version" in capsys.readouterr().err


TWO_RUNS = """
import os, sys, time
import spectro.verbs.predict as command
from spectro.cli import run_verb
folder, *arguments = sys.argv[1:]
Predictor = command.Predictor
def patient(*given, **named):  # the run that holds the table keeps it until the other has given up
    while not os.path.exists(folder + "/go"):
        time.sleep(0.01)
    return Predictor(*given, **named)
command.Predictor = patient
for number in range(2):
    if os.fork() == 0:
        os.dup2(os.open(f"{folder}/{number}.log", os.O_WRONLY | os.O_CREAT), 2)
        os._exit(run_verb("predict", arguments))
first = os.wait()[1]
open(folder + "/go", "w").close()
print(os.waitstatus_to_exitcode(first), os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_only_a_single_run_of_two_started_together_writes_the_table(
    world: World, tmp_path: Path, wav: WriteWav
) -> None:
    """The old journal has many rows, which take a while to read."""
    path, out = wav(), tmp_path / "rows.csv"
    assert run(settings(world, out, path)) == 0
    head, line = beside(out).read_text().splitlines()
    entry = json.loads(line)
    many = (json.dumps({**entry, "path": f"/gone/{number}.wav"}) for number in range(5000))
    beside(out).write_text("".join(f"{one}\n" for one in (head, line, *many)))
    others = [wav(f"others/{number}.wav") for number in range(3)]
    (tmp_path / "logs").mkdir()
    given = [str(path), str(tmp_path / "others"), "--checkpoint", str(world.checkpoint), "--out", str(out)]
    told = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, str(tmp_path / "logs"), *given, "--device", "cpu"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert told.stdout == "2 0\n"
    said = "".join((tmp_path / "logs" / f"{number}.log").read_text() for number in range(2))
    assert said.count("rows.csv: another run writes there; wait, or name another --out") == 1
    assert said.count("4 of 4 recordings classified (1 kept from an earlier run)") == 1
    assert sorted(pd.read_csv(out)["path"]) == sorted(str(one) for one in (path, *others))
    assert len(beside(out).read_text().splitlines()) == 1 + 4


def test_a_full_disk_loses_no_rows_and_the_next_run_resumes(world: World, tmp_path: Path) -> None:
    """A file size limit simulates a full disk."""
    out = tmp_path / "rows.csv"
    code = (
        "import resource, signal, sys; from spectro.cli import run_verb\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "sys.exit(run_verb('predict', sys.argv[1:]))"
    )
    given = [str(world.corpus), "--checkpoint", str(world.checkpoint), "--device", "cpu", "--batch_size", "4"]
    child = subprocess.run(
        [sys.executable, "-c", code, *given, "--out", str(out)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert child.returncode == 2
    assert f"spectro predict: {beside(out)}: File too large" in child.stderr and "Traceback" not in child.stderr
    entered = [json.loads(line) for line in beside(out).read_text().splitlines()][1:]
    assert len(entered) >= 4 and len(pd.read_csv(out)) == len(entered)
    assert run(settings(world, out, world.corpus)) == 0
    assert len(pd.read_csv(out)) == 48 and not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("out", ["rows.csv", "rows.parquet"])
def test_a_recording_that_changes_while_followed_is_predicted_again(
    world: World, tmp_path: Path, wav: WriteWav, monkeypatch: pytest.MonkeyPatch, rendered: list[str], out: str
) -> None:
    """As with an upload that pauses: its first half is a valid recording, too."""
    path = wav("calls/0.wav", voice(1.0))

    def grow() -> None:
        wait_until(lambda: len(rendered) == 1)
        wav("calls/0.wav", voice(3.0))

    _stop_when(monkeypatch, lambda: len(rendered) == 2)
    other = threading.Thread(target=grow)
    other.start()
    assert run(settings(world, tmp_path / out, tmp_path / "calls", follow=True, settle_s=0.2)) == 0
    other.join()
    table = pd.read_csv(tmp_path / out) if out.endswith("csv") else pd.read_parquet(tmp_path / out)
    assert table[["path", "end_s"]].to_numpy().tolist() == [[str(path), 3.0]]


def test_the_later_of_two_journal_rows_of_a_recording_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"half")
    with Journal(tmp_path / "journal", "one", None) as journal:
        journal.add([(path, sign(path), {"path": "half"})])
        path.write_bytes(b"whole")
        journal.add([(path, sign(path), {"path": "whole"})])
        assert journal.superseded and list(journal.records()) == [[{"path": "whole"}]]
    with Journal(tmp_path / "journal", "one", None) as journal:
        assert list(journal.records()) == [[{"path": "whole"}]]


def test_a_file_is_settled_when_both_its_timestamps_are_old_or_in_the_future(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"1")
    size, modified, changed, number = sign(path)
    assert not predict._is_still((size, modified, changed, number), 3600)
    long_ago, to_come = modified - 7200 * 10**9, modified + 7200 * 10**9
    assert not predict._is_still((size, long_ago, changed, number), 3600)  # a copy that keeps the modification time
    assert predict._is_still((size, long_ago, long_ago, number), 3600)
    assert predict._is_still((size, to_come, to_come, number), 3600)  # from a server whose clock is ahead


def _stop_when(monkeypatch: pytest.MonkeyPatch, reached: Callable[[], bool]) -> None:
    original = predict._arrivals

    def until(*arguments: object) -> Iterator[list[Path]]:
        for arrived in original(*arguments):  # type: ignore[arg-type]
            yield arrived
            if reached():
                raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_arrivals", until)


def test_follow_predicts_each_arriving_recording_once_and_only_when_complete(
    world: World, tmp_path: Path, wav: WriteWav, monkeypatch: pytest.MonkeyPatch, rendered: list[str]
) -> None:
    out = tmp_path / "rows.csv"
    wav("calls/0.wav")

    def arrive() -> None:
        half = wav("elsewhere.wav", voice(3.0)).read_bytes()
        time.sleep(0.2)
        with (tmp_path / "calls/1.wav").open("wb") as growing:
            for start in range(0, len(half), len(half) // 5):
                growing.write(half[start : start + len(half) // 5])
                growing.flush()
                time.sleep(0.1)
        wav("calls/deep/2.wav", voice(2.0))

    _stop_when(monkeypatch, lambda: len(pd.read_csv(out)) == 3)
    other = threading.Thread(target=arrive)
    other.start()
    held_up = 1.5  # seconds that a busy machine may delay the writer
    code = run(settings(world, out, tmp_path / "calls", follow=True, settle_s=held_up))
    other.join()
    assert code == 0
    table = pd.read_csv(out)
    assert sorted(rendered) == ["0.wav", "1.wav", "2.wav"]  # none was read while it grew, and none was read twice
    assert table.set_index(table["path"].map(lambda path: Path(path).name))["end_s"].to_dict() == {
        "0.wav": 1.0,
        "1.wav": 3.0,
        "2.wav": 2.0,
    }


def test_a_followed_folder_that_is_interrupted_while_a_row_is_written_has_that_row(
    world: World, tmp_path: Path, wav: WriteWav, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, add = wav("calls/0.wav"), Journal.add

    def interrupted(self: Journal, entries: object) -> None:
        add(self, entries)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", interrupted)
    out = tmp_path / "rows.csv"
    assert run(settings(world, out, tmp_path / "calls", follow=True, settle_s=0.1)) == 0
    assert pd.read_csv(out)["path"].tolist() == [str(path)]
    assert "1 of 1 recordings classified" in capsys.readouterr().err


def test_a_followed_folder_keeps_rows_of_recordings_that_cannot_be_found(
    world: World, tmp_path: Path, wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    wav("calls/0.wav")
    (tmp_path / "calls/broken.wav").symlink_to("nowhere.wav")
    out = tmp_path / "rows.csv"
    _stop_when(monkeypatch, lambda: len(pd.read_csv(out)) == 2)
    assert run(settings(world, out, tmp_path / "calls", follow=True, settle_s=0.1)) == 1
    rows = pd.read_csv(out)
    assert sorted(Path(path).name for path in rows["path"]) == ["0.wav", "broken.wav"]
    assert rows["error"].notna().sum() == 1


def test_an_address_of_an_unknown_kind_in_a_list_gets_a_row(world: World, tmp_path: Path, wav: WriteWav) -> None:
    path, out = wav("a.wav"), tmp_path / "rows.csv"
    (tmp_path / "list.txt").write_text(f"{path}\nfoo://bucket/x.wav\n")
    assert run(settings(world, out, tmp_path / "list.txt")) == 1
    rows = pd.read_csv(out).set_index("path")
    assert pd.isna(rows.loc[str(path), "error"]) and "foo" in rows.loc["foo://bucket/x.wav", "error"]
