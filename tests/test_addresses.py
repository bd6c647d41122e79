import io
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from spectro.addresses import AT_ONCE, Address, is_address, mark_at, place, sign_at
from spectro.audio import recording
from spectro.audio.source import fetched
from spectro.audio.stream import blocks
from spectro.baselines.features import FeatureSettings, extract
from spectro.corpora.registry import scan
from spectro.errors import AudioError, PredictionError, SpectroError
from spectro.picture import png
from spectro.predict.explain import explain
from spectro.predict.inputs import expand, stems
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_index
from spectro.rendering.render import RenderSettings, render
from tests.conftest import SMALL, World, voice


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def sound(seconds: float = 2.0) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, voice(seconds), 16_000, format="WAV")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a.wav", Address("s3://bucket/a.wav")),
        ("/tmp/a.wav", Path("/tmp/a.wav")),
        ("C://a.wav", Path("C://a.wav")),
        ("file:///tmp/a.wav", Path("/tmp/a.wav")),
        ("a://b", Path("a://b")),
    ],
)
def test_addresses_are_distinguished_from_paths(text: str, expected: object) -> None:
    assert place(text) == expected
    assert place(expected) == expected  # type: ignore[arg-type]
    assert is_address("file:///tmp/a.wav") and not is_address("/tmp/a.wav")


def test_an_address_has_the_parts_of_a_path() -> None:
    one = Address("s3://bucket/calls/a b#1.WAV")
    assert (one.name, one.suffix, str(one.parent)) == ("a b#1.WAV", ".WAV", "s3://bucket/calls")
    assert str(one.parent / "x") == "s3://bucket/calls/x"
    assert Address("s3://bucket").suffix == "" and Address("s3://bucket/table").suffix == ""


def test_a_folder_at_an_address_is_searched_in_order(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("/calls/b/x.wav", "/calls/a/y.WAV", "/calls/z.flac", "/calls/note.txt", "/calls/.hidden.wav"):
        memory.pipe(name, b"content")
    found = list(expand(["memory://calls"]))
    assert [str(one) for one in found] == [
        "memory://calls/z.flac",
        "memory://calls/a/y.WAV",
        "memory://calls/b/x.wav",
    ]
    assert [one.signature for one in found] == [Address(str(one)).sign() for one in found]
    assert [str(one) for one in stems(found)] == ["z", "a/y", "b/x"]


def test_output_names_of_addresses_stay_below_the_output_folder() -> None:
    found = stems([Address("https://h/calls/a.wav"), Address("https://h/calls/../../../tmp/evil.wav")])
    assert not any(".." in one.parts or one.is_absolute() for one in found)


def test_the_host_is_kept_where_listings_omit_it(memory: fsspec.AbstractFileSystem) -> None:
    assert Address("hdfs://host/calls")._called("/calls/a.wav", "/calls") == "hdfs://host/calls/a.wav"
    assert Address("s3://b/calls/")._called("b/calls/a.wav", "b/calls") == "s3://b/calls/a.wav"
    assert Address("https://h/calls")._called("https://h/calls/a.wav", "https://h/calls") == "https://h/calls/a.wav"
    assert str(Address("hdfs:///a.csv").parent / "x") == "hdfs:///x"


def test_lists_may_contain_addresses_and_be_read_from_addresses(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    memory.pipe("/calls/list.txt", b"a.wav\r\n\nmemory://other/b.wav\n")
    (tmp_path / "list.csv").write_text("path,who\nmemory://calls/c.wav,me\nd.wav,you\n")
    found = expand(["memory://calls/list.txt", tmp_path / "list.csv"])
    assert list(map(str, found)) == [
        "memory://calls/a.wav",
        "memory://other/b.wav",
        "memory://calls/c.wav",
        str(tmp_path / "d.wav"),
    ]


def test_a_missing_address_raises_an_error_that_names_it(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(PredictionError, match=r"memory://nothing: does not exist"):
        list(expand(["memory://nothing"]))
    with pytest.raises(AudioError, match=r"memory://gone\.wav: cannot be opened \(does not exist\)"):
        recording.read(Address("memory://gone.wav"), sample_rate=16_000)
    assert sign_at(Address("memory://gone.wav")) is None
    with pytest.raises(SpectroError, match=r"nosuch://x: Protocol not known: nosuch"):
        list(expand(["nosuch://x"]))


def test_the_error_of_a_failing_service_names_the_address(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials\nat all")

    monkeypatch.setattr(type(memory), "exists", refuse)
    with pytest.raises(OSError, match="no credentials") as told:
        list(expand(["memory://calls"]))
    assert (told.value.filename, told.value.strerror) == ("memory://calls", "no credentials")


def test_a_recording_reads_the_same_from_disk_and_from_an_address(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    memory.pipe("/a.wav", sound())
    (tmp_path / "a.wav").write_bytes(sound())
    there = recording.read(Address("memory://a.wav"), sample_rate=16_000)
    np.testing.assert_array_equal(there, recording.read(tmp_path / "a.wav", sample_rate=16_000))
    assert recording.duration_s(Address("memory://a.wav")) == 2.0


def test_opening_a_large_file_does_not_fetch_it_whole(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/long.wav", b"x" * (AT_ONCE + 1))
    fetched: list[str] = []
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: fetched.append("whole"))
    with Address("memory://long.wav").opened() as stream:
        assert stream.read(3) == b"xxx" and not fetched


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_connection_lost_while_a_file_is_read_is_not_taken_for_its_end(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    content = io.BytesIO()
    soundfile.write(content, voice(20.0), 16_000, format=ending)
    memory.pipe(f"/long.{ending}", content.getvalue())

    class Lost(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if self.tell() + len(buffer) > len(content.getvalue()) // 2:
                raise ConnectionError("the connection was lost")
            return super().readinto(buffer)

    monkeypatch.setattr("spectro.addresses.AT_ONCE", 1000)
    monkeypatch.setattr(type(memory), "open", lambda *_, **__: Lost(content.getvalue()))
    where = Address(f"memory://long.{ending}")
    with pytest.raises(KeyboardInterrupt), fetched(where) as stream:
        while stream.read(1000):
            pass
        raise KeyboardInterrupt
    for read in (recording.read, lambda *given, **more: list(blocks(*given, **more))):
        with pytest.raises(AudioError, match=rf"memory://long.{ending}: cannot be read \(the connection was lost\)"):
            read(where, sample_rate=16_000)


def test_an_overwritten_file_has_another_signature(memory: fsspec.AbstractFileSystem) -> None:
    one = Address("memory://folder/one")
    one.write_bytes(b"first")
    before = one.sign()
    assert one.read_bytes() == b"first" and one.kind() == "file" and one.parent.kind() == "folder"
    one.write_bytes(b"other")
    assert one.sign() != before
    one.remove()
    assert one.kind() is None


def write_table(folder: Path, places: dict[str, str]) -> Path:
    lines = [f"{where},{label},{label}-speaker" for where, label in places.items()]
    (folder / "clips.csv").write_text("\n".join(["path,label,speaker", *lines]) + "\n")
    return folder / "clips.csv"


def test_a_corpus_at_addresses_renders_like_one_on_disk(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    contents = {"a.wav": sound(1.0), "deep/b c.wav": sound(1.5)}
    for name, content in contents.items():
        memory.pipe(f"/bucket/{name}", content)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "there").mkdir()
    there = write_table(
        tmp_path / "there",
        {" memory://bucket/a.wav": "sad", "memory://bucket/deep/b c.wav": "happy", "memory://bucket/no.wav": "sad"},
    )
    here = write_table(tmp_path, dict(zip(contents, ("sad", "happy"), strict=True)))
    found = {}
    for table in (here, there):
        settings = RenderSettings(corpus="folder", source=table, out=table.parent / "images", spec=SMALL, workers=1)
        done = render(settings)
        assert (done.images, done.failures) == (2, table == there)
        index, spec = read_index(done.out)
        found[table] = {
            row.emotion: (row.speaker, png.read(done.out / row.image, spec).pixels.tobytes())
            for row in index.itertuples()
        }
    assert found[here] == found[there]
    assert sorted(index["path"]) == ["memory://bucket/a.wav", "memory://bucket/deep/b c.wav"]
    assert "memory://bucket/no.wav,folder_memory_bucket_no" in (done.out / "failures.csv").read_text()
    assert "does not exist" in (done.out / "failures.csv").read_text()
    assert render(settings).reused == 2
    memory.pipe("/bucket/a.wav", sound(1.2))
    assert render(settings).reused == 1


def test_a_recording_that_cannot_be_fetched_does_not_stop_a_scan(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("the token has expired")

    for name in "ab":
        memory.pipe(f"/bucket/{name}.wav", sound(1.0))
    monkeypatch.setattr(type(memory), "cat_file", refuse)
    table = write_table(tmp_path, {f"memory://bucket/{name}.wav": "sad" for name in "ab"})
    assert len(scan("folder", table).clips) == 2
    monkeypatch.setattr(type(memory), "info", refuse)
    assert len(scan("folder", table).clips) == 2
    with pytest.raises(OSError, match="the token has expired"):
        mark_at(Address("memory://bucket/a.wav"))


def test_a_service_that_reports_a_time_alone_shows_that_a_file_has_changed(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = []
    for day in (1, 2):
        info = {"size": 10, "type": "file", "name": "a", "Last-Modified": f"Sun, 0{day} Nov 2026 00:00:00 GMT"}
        monkeypatch.setattr(type(memory), "info", lambda *_, info=info, **__: info)
        marks.append(mark_at(Address("memory://a.wav")))
    assert marks[0] != marks[1]


def test_equal_recordings_at_addresses_count_once(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 1.1)):
        memory.pipe(f"/bucket/{name}.wav", sound(seconds))
    (tmp_path / "d.wav").write_bytes(sound(1.1))
    table = write_table(
        tmp_path, {**{f"memory://bucket/{name}.wav": "sad" for name in "abc"}, (tmp_path / "d.wav").as_uri(): "sad"}
    )
    found = scan("folder", table)
    assert len(found.clips) == 2 and len(found.rejected) == 2
    assert found.rejected["reason"].str.contains("is the same recording as").all()


def test_features_and_the_python_interface_read_addresses(
    world: World, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    memory.pipe("/bucket/a.wav", sound())
    (tmp_path / "a.wav").write_bytes(sound())
    predictor = Predictor(world.checkpoint)
    places = ("memory://bucket/a.wav", f"file://{tmp_path}/a.wav", tmp_path / "a.wav")
    there, also_here, here = (predictor.predict_wav(one).probabilities for one in places)
    assert there == also_here == here
    table = write_table(tmp_path, {"memory://bucket/a.wav": "sad"})
    out = tmp_path / "images"
    render(RenderSettings(corpus="folder", source=table, out=out, spec=SMALL, workers=1))
    described = extract(out, FeatureSettings(), workers=1)
    assert len(described.rows) == 1 and not described.failures


def test_a_server_that_lists_no_sizes_is_asked_for_each_file(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fsspec lists the pages of a web server."""
    memory.pipe("/calls/a.wav", b"first")
    listed = memory.ls("/calls", detail=True)
    nameless = [{"name": one["name"], "type": one["type"], "size": None} for one in listed]
    monkeypatch.setattr(type(memory), "ls", lambda *_, **__: nameless)
    (before,) = (one.sign() for one in Address("memory://calls").files())
    memory.pipe("/calls/a.wav", b"second")
    (after,) = (one.sign() for one in Address("memory://calls").files())
    assert before is not None and after is not None and before != after
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: {"name": "a.wav", "type": "file", "size": None})
    assert [one.sign() for one in Address("memory://calls").files()] == [None]


def test_a_file_of_unknown_size_is_fetched_whole_up_to_a_limit(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/calls/a.wav", sound(1.0))
    known = recording.read("memory://calls/a.wav", sample_rate=16_000)
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: {"name": "a.wav", "type": "file", "size": None})
    np.testing.assert_array_equal(recording.read("memory://calls/a.wav", sample_rate=16_000), known)
    monkeypatch.setattr("spectro.addresses.UNSIZED", 2**14)
    with pytest.raises(AudioError, match=r"calls/a.wav: cannot be opened \(the server does not tell its size"):
        recording.read("memory://calls/a.wav", sample_rate=16_000)


def test_a_picture_at_an_address_is_explained(world: World, memory: fsspec.AbstractFileSystem) -> None:
    path = next((world.images / "images").glob("*_0.png"))
    memory.pipe("/bucket/a.png", path.read_bytes())
    predictor = Predictor(world.checkpoint, device="cpu")
    here, there = explain(predictor, path), explain(predictor, "memory://bucket/a.png")
    np.testing.assert_array_equal(here.heat, there.heat)
