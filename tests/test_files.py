import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from spectro.errors import PredictionError, SpectroError
from spectro.files import (
    Appended,
    content_mark,
    held,
    json_text,
    path_text,
    printable,
    remove_leftovers,
    replacing,
    sign,
    write_bytes,
)
from spectro.outputs import LIST, LIST_LOCK, cell, check_ours, claimed, lock_of, rows_text, table_bytes, text_of
from tests.conftest import REPOSITORY

EVIL = "a\x1b[31m\x9b0m\r\n\t\u202eb\u2066\u2028\u2029\x85\x7f\x00c\ud800"


def test_printable_escapes_control_and_bidirectional_characters() -> None:
    shown = printable(EVIL)
    assert shown == (r"a\x1b[31m\x9b0m\r\n\t\u202eb\u2066\u2028\u2029\x85\x7f\x00c\ud800")
    everything = printable("".join(map(chr, range(0x110000))), 2**24)
    assert {unicodedata.category(one) for one in everything}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    assert not {unicodedata.bidirectional(one) for one in everything} & {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
    }


def test_readable_names_stay_unchanged_and_undecodable_bytes_are_escaped() -> None:
    for name in ("é 名前 می‌خواهم.wav", "a" * 300):
        assert printable(name) == path_text(name) == name
    assert printable(os.fsdecode(b"\xff\xfe.wav")) == path_text(os.fsdecode(b"\xff\xfe.wav")) == r"\xff\xfe.wav"
    assert path_text(Path("a\rb\n.wav")) == "a\rb\n.wav"


@pytest.mark.parametrize("text", ["x" * 301, "x" * 10**6, "\x1b" * 200, "\x1b" * 10**6])
def test_a_long_text_is_shortened_in_the_middle(text: str) -> None:
    shown = printable("begin" + text + "end")
    assert len(shown) == 300
    assert shown.startswith("begin") and shown.endswith("end") and shown.count("…") == 1


def test_json_reads_back_equal_and_escapes_invisible_characters() -> None:
    content = {"name": EVIL + "\U000e0041é", "list": ["\u2028"]}
    for indent in (None, 2):
        text = json_text(content, indent=indent)
        assert json.loads(text) == content
        assert len(text.splitlines()) == (1 if indent is None else 6)
        assert "é" in text and "\x9b" not in text and "\u202e" not in text
        text.encode()


def test_csv_rows_with_special_characters_read_back_equal() -> None:
    row = ["a\rb", "c\nd", "e\r\nf", 'g"h,i', "\x1b", "", "é", "\u2028", "=1"]
    text = rows_text([row, ["next"] * 9])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [row, ["next"] * 9]
    assert rows_text([["a", "b"]]) == "a,b\n"


def test_tables_contain_no_spreadsheet_formula() -> None:
    formulas = ["=1+1", "+cmd|x", "-2+3", "@SUM(1)", "\t=1", "\r=1"]
    table = pd.DataFrame({"path": formulas, "reason": formulas, "value": [-1.5, 2, 3, 4, 5, 6]})
    found = pd.read_csv(io.BytesIO(table_bytes(table)), keep_default_na=False)
    assert found["path"].tolist() == [f"./{one}" for one in formulas]
    assert found["reason"].tolist() == [f"'{one}" for one in formulas]
    assert found["value"].tolist() == [-1.5, 2, 3, 4, 5, 6]
    harmless = pd.DataFrame({"speaker": ["-1", "+2.5", "a=b", "01"]})
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(table_bytes(harmless)), dtype=str), harmless)


def test_a_replaced_file_has_another_signature_and_content_mark(tmp_path: Path) -> None:
    """Size and modification time stay equal, as with tools that copy or synchronise."""
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    status, signature, mark = path.stat(), sign(path), content_mark(path)
    other.write_bytes(b"two")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert sign(path) != signature and content_mark(path) != mark
    path.write_bytes(b"one")
    assert content_mark(path) == mark
    assert sign(tmp_path / "gone") is None
    with pytest.raises(OSError, match="not a regular file"):
        content_mark(tmp_path)


def test_a_lock_has_a_single_holder_and_its_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    with held(path) as free:
        assert free
        number = path.stat().st_ino
        with held(path) as again:
            assert not again
        code = "import sys, pathlib, spectro.files as f\nwith f.held(pathlib.Path(sys.argv[1])) as free: print(free)"
        told = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, capture_output=True, text=True)
        assert told.stdout == "False\n"
    with held(path) as free:
        assert free and path.stat().st_ino == number


def test_leftovers_of_killed_runs_are_removed_and_other_files_are_kept(tmp_path: Path) -> None:
    left = [".rows.csv.123.part", ".a\nb.4.part"]
    stays = ["rows.csv", "x.123.part", ".rows.csv.part", ".other.5.part", ".rows.csv.abc.part"]
    for name in (*left, *stays):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path, {"rows.csv", "a\nb"})
    assert {path.name for path in tmp_path.iterdir()} == set(stays)
    remove_leftovers(tmp_path)
    assert ".other.5.part" not in {path.name for path in tmp_path.iterdir()}


FULL = """
import resource, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from spectro.cli import run_verb
from spectro.files import Appended, replacing, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = Path(sys.argv[1])
def tell(work):
    try:
        work()
    except OSError as error:
        print(error.errno, error.filename)
tell(lambda: write_bytes(folder / "whole", bytes(20_000)))
def unnamed():
    with replacing(folder / "other") as temporary, temporary.open("wb") as stream:
        stream.write(bytes(20_000))
tell(unnamed)
grown = Appended(folder / "grown")
grown.write("line\\n" * 1000)
tell(lambda: grown.write("x" * 8000 + "\\n"))
grown.write("last\\n")
"""


def test_a_full_disk_error_names_the_file_and_leaves_no_partial_file(tmp_path: Path) -> None:
    """A file size limit simulates a full disk: the system fails in the same way."""
    told = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert told.stderr == ""
    assert [line.split(" ", 1)[1] for line in told.stdout.splitlines()] == [
        str(tmp_path / name) for name in ("whole", "other", "grown")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["grown"]
    assert (tmp_path / "grown").read_text() == "line\n" * 1000 + "last\n"


def test_a_reopened_file_is_appended_to_at_its_end(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        grown = Appended(tmp_path / "a", temporary)
        grown.write("é\n")
        grown.close()
    grown.reopen()
    grown.write("b\n")
    grown.sync()
    grown.close()
    again = Appended(tmp_path / "a")
    again.write("c\n")
    again.close()
    assert (tmp_path / "a").read_text() == "é\nb\nc\n"


def test_foreign_files_are_refused_as_outputs_and_own_outputs_are_replaced(tmp_path: Path) -> None:
    path, lock = tmp_path / "rows.csv", tmp_path / ".lock"
    path.write_text("mine")
    foreign = pytest.raises(PredictionError, match=r"rows\.csv: already exists.*choose another --out, or move it")
    with foreign, claimed([path], lock=lock, error=PredictionError):
        pytest.fail("it was taken")
    assert [one.name for one in tmp_path.iterdir()] == ["rows.csv"]  # nothing is left behind
    path.unlink()
    for _ in range(2):
        with claimed([path, tmp_path / "sub" / "a\nb"], lock=lock, error=PredictionError):
            write_bytes(path, b"ours")
            write_bytes(tmp_path / "sub" / "a\nb", b"ours")
    assert json.loads((tmp_path / LIST).read_text()) == ["rows.csv", content_mark(path)]


def test_a_file_that_a_failed_run_did_not_write_counts_as_foreign(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(KeyError), claimed([path], lock=tmp_path / ".lock", error=PredictionError):
        raise KeyError
    path.write_text("mine")
    with pytest.raises(PredictionError, match="already exists"):
        check_ours([path], error=PredictionError)


@pytest.mark.parametrize("known", [False, True])
def test_an_output_edited_since_it_was_written_is_not_replaced(tmp_path: Path, known: bool) -> None:
    path, lock = tmp_path / "rows.csv", tmp_path / ".lock"
    with claimed([path], lock=lock, error=PredictionError):
        path.write_text("ours")
        with (tmp_path / LIST).open() as entered:
            claim = entered.read()
    path.unlink()
    path.write_text("mine")
    changed = pytest.raises(
        PredictionError, match=r"rows\.csv: was changed since spectro wrote it; choose another --out"
    )
    with changed, claimed([path], lock=lock, error=PredictionError, known=known):
        pytest.fail("it was taken")
    assert path.read_text() == "mine"
    check_ours([path], error=PredictionError, edited=[path])
    path.write_text("ours")
    check_ours([path], error=PredictionError)
    (tmp_path / LIST).write_text(claim)  # as a killed run leaves it, and as versions without marks did
    path.write_text("half")
    with claimed([path], lock=lock, error=PredictionError):
        path.write_text("whole")
    check_ours([path], error=PredictionError)


@pytest.mark.parametrize("name", [LIST, LIST_LOCK, ".lock"])
def test_neither_list_nor_lock_is_written_through_a_symbolic_link(tmp_path: Path, name: str) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "out"
    mine.write_text("mine")
    folder.mkdir()
    (folder / name).symlink_to(mine)
    linked = pytest.raises(SpectroError, match=rf"{re.escape(name)}: is a symbolic link.*; remove it")
    with linked, claimed([folder / "a"], lock=folder / ".lock", error=PredictionError):
        pytest.fail("it was taken")
    assert mine.read_text() == "mine"


def test_concurrent_outputs_to_a_folder_are_all_listed(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for turn in range(5):
            path = tmp_path / f"{number}-{turn}"
            with claimed([path, tmp_path / f"{number}-gone"], lock=lock_of(path), error=PredictionError):
                path.write_text("ours")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    check_ours([tmp_path / f"{number}-{turn}" for number in range(4) for turn in range(5)], error=PredictionError)


def test_an_output_path_that_leads_to_an_input_is_refused(tmp_path: Path) -> None:
    path, link, twin = tmp_path / "a", tmp_path / "link", tmp_path / "twin"
    path.write_text("mine")
    link.symlink_to(path)
    twin.hardlink_to(path)
    for out in (path, link, twin, tmp_path / "." / "a"):
        with pytest.raises(PredictionError, match="is an input, and would be overwritten"):
            check_ours([out], error=PredictionError, inputs=[path], known=True)


@pytest.mark.parametrize("text", ["+", "-", "=1+2", "@x", "happy", "'quoted'", "-3.5", "", "\t"])
def test_a_cell_reads_back_as_its_text(text: str) -> None:
    assert text_of(cell("label", text)) == text
