import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from spectro.addresses import Address, place
from spectro.cluster import Cluster
from spectro.errors import PredictionError, SpectroError
from spectro.files import sign
from spectro.predict import spread
from spectro.predict.network import Network
from spectro.predict.output.parts import Answered, Listing, Parts, key_of, parts_in, write_part
from spectro.verbs import predict, timeline
from spectro.verbs.predict import PredictSettings
from spectro.verbs.timeline import TimelineSettings
from tests.conftest import REPOSITORY, World, WriteWav, voice

COLUMNS = ("path", "label", "error")


@pytest.fixture
def calls(tmp_path: Path, wav: WriteWav) -> Path:
    """Six recordings, and a file that is not a recording."""
    for number in range(6):
        wav(f"calls/{number}.wav", voice(pitch=120 + 20 * number))
    (tmp_path / "calls" / "broken.wav").write_bytes(b"RIFF no recording")
    return tmp_path / "calls"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "FEWEST", 2)


@pytest.fixture(params=["folder", "address"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | Address]:
    if request.param == "folder":
        yield tmp_path / "table"
        return
    yield Address("memory://results/table")
    fsspec.filesystem("memory").store.clear()


def settings_of(world: World, calls: Path | Address, out: Path | Address, **changes: object) -> PredictSettings:
    """Settings of a run with ONNX Runtime, whose output is the same to the last digit, whatever the batch."""
    defaults = {"checkpoint": world.checkpoint, "device": "cpu", "engine": "onnx"}
    return PredictSettings(inputs=[str(calls)], out=out, **(defaults | changes))  # type: ignore[arg-type]


def run_in_parts(world: World, calls: Path | Address, out: Path | Address, **changes: object) -> int:
    """Run as on a cluster, but in this process."""
    return predict._spread(settings_of(world, calls, out, **changes))


def rows(out: Path | Address) -> pd.DataFrame:
    found = [pd.read_parquet(io.BytesIO(one.read_bytes())) for one in parts_in(out)]
    return pd.concat(found, ignore_index=True)


def local_rows(world: World, calls: Path, folder: Path) -> pd.DataFrame:
    predict.run(settings_of(world, calls, folder))
    return rows(folder)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recordings that have been rendered."""
    names: list[str] = []
    before = predict.Predictor.render

    def render(self: predict.Predictor, source: object) -> object:
        names.append(Path(str(getattr(source, "name", source))).name)
        return before(self, source)  # type: ignore[arg-type]

    monkeypatch.setattr(predict.Predictor, "render", render)
    return names


@pytest.mark.usefixtures("small_parts")
def test_a_run_in_parts_equals_a_local_run_and_a_rerun_retries_only_failures(
    world: World, calls: Path, out: Path | Address, tmp_path: Path, rendered: list[str]
) -> None:
    expected = local_rows(world, calls, tmp_path / "local")
    rendered.clear()
    assert run_in_parts(world, calls, out) == 1
    assert len(parts_in(out)) == 4
    assert_same(rows(out), expected)
    assert len(rendered) == 7
    rendered.clear()
    assert run_in_parts(world, calls, out) == 1
    assert rendered == ["broken.wav"]  # a recording that could not be used is tried again
    assert_same(rows(out).sort_values("path", ignore_index=True), expected)


@pytest.mark.usefixtures("small_parts")
def test_a_killed_run_resumes_without_repeating_finished_parts(
    world: World, calls: Path, out: Path | Address, tmp_path: Path, rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = local_rows(world, calls, tmp_path / "local")
    before = spread.work

    def dying(job: spread.Job, recipe: spread.Recipe) -> spread.Done:
        if job.number == 2:
            raise KeyboardInterrupt
        return before(job, recipe)

    monkeypatch.setattr(spread, "work", dying)
    with pytest.raises(KeyboardInterrupt):
        run_in_parts(world, calls, out)
    assert len(rows(out)) == 4
    monkeypatch.setattr(spread, "work", before)
    rendered.clear()
    assert run_in_parts(world, calls, out) == 1
    assert len(rendered) == 3
    assert_same(rows(out), expected)


@pytest.mark.usefixtures("small_parts")
def test_changed_recordings_get_new_rows_and_deleted_recordings_lose_theirs(
    world: World, calls: Path, out: Path | Address, wav: WriteWav, rendered: list[str]
) -> None:
    run_in_parts(world, calls, out)
    wav("calls/1.wav", voice(3.0))
    (calls / "4.wav").unlink()
    (calls / "broken.wav").unlink()
    rendered.clear()
    assert run_in_parts(world, calls, out) == 0
    assert rendered == ["1.wav"]
    found = rows(out)
    assert sorted(Path(path).name for path in found["path"]) == ["0.wav", "1.wav", "2.wav", "3.wav", "5.wav"]
    assert found.set_index("path")["end_s"][str(calls / "1.wav")] == 3.0


def test_changed_settings_recompute_all_rows(
    world: World, calls: Path, out: Path | Address, capsys: pytest.CaptureFixture[str], rendered: list[str]
) -> None:
    run_in_parts(world, calls, out)
    rendered.clear()
    run_in_parts(world, calls, out, min_margin=0.5)
    assert "7 rows from another checkpoint, other settings" in capsys.readouterr().err
    assert len(rendered) == len(rows(out)) == 7


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet", "table.json"])
@pytest.mark.parametrize("where", ["", "memory://results/"])
def test_single_file_tables_equal_those_of_a_local_run(
    world: World, calls: Path, tmp_path: Path, where: str, name: str
) -> None:
    plain = tmp_path / f"local-{name}"
    predict.run(settings_of(world, calls, plain))
    out = place(f"{where}{name}") if where else tmp_path / name
    assert run_in_parts(world, calls, out) == 1
    assert out.read_bytes() == plain.read_bytes() or name.endswith("parquet")
    if name.endswith("parquet"):
        assert_same(pd.read_parquet(io.BytesIO(out.read_bytes())), pd.read_parquet(plain))
    fsspec.filesystem("memory").store.clear()


def test_a_foreign_file_named_like_a_part_raises_an_error_and_is_kept(
    world: World, calls: Path, out: Path | Address
) -> None:
    foreign = io.BytesIO()
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    if isinstance(out, Path):
        out.mkdir()
    (out / "part-00000.parquet").write_bytes(foreign.getvalue())
    with pytest.raises(PredictionError, match="did not make it; choose another --out"):
        run_in_parts(world, calls, out)
    assert (out / "part-00000.parquet").read_bytes() == foreign.getvalue()


def test_a_truncated_part_is_written_again(world: World, calls: Path, out: Path | Address) -> None:
    run_in_parts(world, calls, out)
    expected = rows(out)
    (part,) = parts_in(out)
    part.write_bytes(part.read_bytes()[:-20])
    assert run_in_parts(world, calls, out) == 1
    assert_same(rows(out), expected)


def test_rows_written_by_two_processes_are_counted_once(out: Path | Address) -> None:
    def record(path: str) -> dict[str, str]:
        return {"path": path, "label": "happy", "error": ""}

    answered = [Answered(key_of(path, "signature"), [record(path)]) for path in "abc"]
    Parts(out, "one")
    write_part(out, f"part-00000-{8 * 'a'}.parquet", answered, COLUMNS, "one")
    write_part(out, f"part-00000-{8 * 'b'}.parquet", answered[1:], COLUMNS, "one")
    parts = Parts(out, "one")
    wanted = np.sort(np.array([one.key for one in answered], np.uint64))
    assert parts.keep(wanted, failed=True).all()
    assert [row["path"] for rows in parts.records() for row in rows] == ["a", "b", "c"]


def test_a_listing_contains_each_recording_once(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("b\n.wav", "a.wav", "b\n.wav", os.fsdecode(b"\xff.wav"))]
    places[1].write_bytes(b"a")
    signature = sign(places[1])
    assert signature is not None
    with Listing(places) as listing:
        assert len(listing.keys) == 3
        done = listing.keys == key_of(str(places[1]), signature)
        assert [path for path, _key in listing.without(done)] == [str(places[0]), str(places[3])]


def test_a_recording_without_a_signature_has_no_row_from_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "there.wav").write_bytes(b"a")
    with Listing([tmp_path / "there.wav", tmp_path / "gone.wav"]) as one, Listing([tmp_path / "gone.wav"]) as other:
        assert len(one.keys) == 2 and not set(one.keys) & set(other.keys)
    with Listing([tmp_path / "there.wav"]) as again:
        assert set(again.keys) <= set(one.keys)


def test_rows_that_processes_of_a_killed_run_write_late_do_not_count(out: Path | Address) -> None:
    def record(label: str) -> dict[str, str]:
        return {"path": "a", "label": label, "error": ""}

    key = key_of("a", "signature")
    parts, wanted = Parts(out, "new"), np.array([key], np.uint64)
    write_part(out, f"part-00001-{8 * 'b'}.parquet", [Answered(key, [record("new")])], COLUMNS, "new")
    write_part(out, f"part-00000-{8 * 'a'}.parquet", [Answered(key, [record("old")])], COLUMNS, "old")
    assert [row["label"] for rows in parts.records() for row in rows] == ["new"]
    assert parts.keep(wanted, failed=True).all()
    assert [part.name for part in parts_in(out)] == [f"part-00001-{8 * 'b'}.parquet"]


def test_a_merge_that_is_interrupted_leaves_the_table_before(
    world: World, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    assert run_in_parts(world, calls, table) == 1
    before = table.read_bytes()

    def interrupted(self: Parts, size: int = 1000) -> Iterator[list[object]]:
        raise KeyboardInterrupt
        yield []

    monkeypatch.setattr(Parts, "records", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in_parts(world, calls, table)
    assert table.read_bytes() == before


def test_a_shipped_checkpoint_with_other_content_in_the_cache_is_written_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = Network(world.checkpoint, device=None, engine="torch").shipped()
    labels = network.labels()
    (found,) = (tmp_path / "cache").rglob("spectro.json")
    for content in (b"", found.read_bytes().replace(labels[0].encode(), b"x")):
        found.write_bytes(content)
        assert network.labels() == labels
    assert network.predictor().engine.name.endswith("on cpu, float32")


def test_timelines_in_parts_equal_local_timelines(
    world: World, calls: Path, out: Path | Address, tmp_path: Path
) -> None:
    def settings(where: Path | Address) -> TimelineSettings:
        return TimelineSettings(inputs=[str(calls)], out=where, checkpoint=world.checkpoint, device="cpu")

    assert timeline.run(settings(tmp_path / "local")) == 1
    assert timeline._spread(settings(out)) == 1
    assert_same(rows(out), rows(tmp_path / "local"))
    assert timeline._spread(settings(out)) == 1
    assert len(rows(out)) == len(rows(tmp_path / "local"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cluster": "local"}, "name one with --out"),
        ({"cluster": "local", "out": Path("table"), "follow": True}, "follow needs a table on this machine"),
        ({"cluster": "local", "out": Path("table"), "workers": 2}, "leave workers out"),
    ],
)
def test_settings_that_a_cluster_does_not_support_are_rejected(changes: dict[str, object], told: str) -> None:
    with pytest.raises(PredictionError, match=told):
        PredictSettings(inputs=["x"], **changes)  # type: ignore[arg-type]


def test_a_cluster_rejects_zero_cpus_and_ray_client_addresses() -> None:
    with pytest.raises(SpectroError, match="takes 0 CPUs"):
        Cluster(address="auto", cpus=0)
    with pytest.raises(SpectroError, match="submit it there with `ray job submit`"):
        Cluster(address="ray://host:10001")
    with pytest.raises(PredictionError, match="device is cuda:1; with a cluster, name cuda"):
        spread.cluster_of("auto", "cuda:1", 1.0, 0.5)


def test_tables_in_subfolders_are_left_untouched(world: World, calls: Path, out: Path | Address) -> None:
    below = out / "january"
    run_in_parts(world, calls, below)
    expected = rows(below)
    run_in_parts(world, calls, out, min_margin=0.5)
    run_in_parts(world, calls, out)
    assert_same(rows(below), expected)


def test_a_local_run_does_not_replace_a_table_in_parts(world: World, calls: Path, tmp_path: Path) -> None:
    run_in_parts(world, calls, tmp_path / "table")
    before = rows(tmp_path / "table")
    with pytest.raises(PredictionError, match="holds a table in parts, from a run with --cluster"):
        predict.run(settings_of(world, calls, tmp_path / "table"))
    assert_same(rows(tmp_path / "table"), before)


def test_remote_inputs_and_foreign_tables_are_not_overwritten(world: World, calls: Path) -> None:
    listed, foreign = Address("memory://lists/mine.csv"), Address("memory://lists/foreign.csv")
    listed.write_bytes(f"path\n{calls / '0.wav'}\n".encode())
    foreign.write_bytes(b"path,note\n")
    with pytest.raises(PredictionError, match="is an input, and would be overwritten"):
        run_in_parts(world, listed, listed)
    with pytest.raises(PredictionError, match=r"already exists, without the parts .*/\.foreign\.csv\.parts"):
        run_in_parts(world, listed, foreign)
    assert listed.read_bytes().startswith(b"path") and foreign.read_bytes() == b"path,note\n"
    for _ in range(2):
        assert run_in_parts(world, listed, Address("memory://lists/ours.csv")) == 0
    fsspec.filesystem("memory").store.clear()


def test_no_rows_are_lost_when_a_folder_cannot_be_listed(
    world: World, calls: Path, out: Path | Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fsspec.filesystem("memory")
    for one in ("0.wav", "1.wav"):
        Address(f"memory://calls/{one[0]}/{one}").write_bytes((calls / one).read_bytes())
    run_in_parts(world, Address("memory://calls"), out)
    expected, before = rows(out), type(system).ls

    def refuse(self: object, path: str, **options: object) -> object:
        if path.endswith("/1"):
            raise PermissionError("forbidden")
        return before(self, path, **options)

    monkeypatch.setattr(type(system), "ls", refuse)
    with pytest.raises(OSError, match="forbidden"):
        run_in_parts(world, Address("memory://calls"), out)
    monkeypatch.setattr(type(system), "ls", before)
    assert_same(rows(out), expected)
    system.store.clear()


def test_rows_missing_from_the_output_raise_an_error(
    world: World, calls: Path, out: Path | Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "LATE_S", 0)
    monkeypatch.setattr(spread, "write_part", lambda *_: None)  # as if on another machine's disk
    with pytest.raises(PredictionError, match="the rows of 7 recordings are missing"):
        run_in_parts(world, calls, out)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a local server."""
    pytest.importorskip("s3fs", reason="spectro[s3] is not installed")
    server_of = pytest.importorskip("moto.server", reason="moto is not installed")
    server = server_of.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("bucket")
    yield "s3://bucket"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small_parts")
def test_predict_reads_recordings_and_resumes_tables_in_s3(
    world: World, calls: Path, s3: str, tmp_path: Path, rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = local_rows(world, calls, tmp_path / "local")
    expected["path"] = [f"{s3}/calls/{Path(path).name}" for path in expected["path"]]
    for one in calls.iterdir():
        Address(f"{s3}/calls/{one.name}").write_bytes(one.read_bytes())
    out = f"{s3}/results/table"

    def run(where: str) -> int:
        return predict.run(settings_of(world, Address(f"{s3}/calls"), place(where)))

    rendered.clear()
    assert run(out) == 1
    assert_same(rows(Address(out)), expected)
    for part in parts_in(Address(out))[2:]:
        part.remove()
    rendered.clear()
    assert run(out) == 1
    assert len(rendered) == 3
    assert_same(rows(Address(out)), expected)
    assert run(f"{s3}/results/table.csv") == 1
    assert len(Address(f"{s3}/results/table.csv").read_bytes().splitlines()) == 8
    rendered.clear()
    assert run(str(tmp_path / "here.csv")) == 1  # recordings in S3, the table local
    assert run(str(tmp_path / "here.csv")) == 1
    assert sorted(rendered) == sorted([*(one.name for one in calls.iterdir()), "broken.wav"])


def test_a_run_on_a_cluster_writes_the_same_rows_as_a_local_run(world: World, calls: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="spectro[ray] is not installed")
    expected = local_rows(world, calls, tmp_path / "local")

    def spectro(verb: str, out: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "spectro", verb, str(calls), "--checkpoint", str(world.checkpoint)]
        command += ["--engine", "onnx", "--out", str(tmp_path / out), "--cluster", "local"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    done = spectro("predict", "table")
    assert done.returncode == 1, done.stderr
    assert_same(rows(tmp_path / "table"), expected)
    assert "6 of 7 recordings" in done.stderr and "1 could not be used" in done.stderr
    assert "Ray" not in done.stderr and "Traceback" not in done.stderr
