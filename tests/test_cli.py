import csv
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import spectro
from spectro import cli
from spectro.cli import VERBS, main, parse, run_verb
from spectro.corpora.download import SOURCES
from spectro.corpora.labels import SCHEMES
from spectro.corpora.registry import CORPORA
from spectro.errors import SpecError, SpectroError
from spectro.picture.spec import SpectrogramSpec
from spectro.rendering.render import RenderSettings
from spectro.study.grid import grid
from spectro.study.settings import StudySettings
from spectro.train.settings import FinetuneSettings
from tests.conftest import REPOSITORY, World, WriteWav, voice

CONFIGS = sorted((REPOSITORY / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_verb(verb, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z_.0-9]+) [A-Z_0-9]+\s+(.*)$", shown, re.MULTILINE)
    assert len(options) >= 2
    assert [name for name, explanation in options if explanation.startswith("(type:")] == []


@pytest.mark.parametrize("verb", ["finetune", "classical", "speech"])
def test_help_lists_every_label_scheme(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_verb(verb, ["--help"])
    assert f"label scheme: {', '.join(SCHEMES)}. (type" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ["render", "download"])
def test_help_lists_every_corpus(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_verb(verb, ["--help"])
    words = set(re.findall(r"[a-z][a-z-]+", capsys.readouterr().out.partition("--corpus")[2]))
    assert set(CORPORA if verb == "render" else SOURCES) <= words


def test_commands_print_what_is_logged_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("spectro")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.NOTSET)
    clip = str(next(world.corpus.rglob("*.wav")))
    for number in range(2):
        assert run_verb("predict", [clip, "--out", str(tmp_path / f"{number}.csv"), "--engine", "torch"]) == 0
    capsys.readouterr()
    log.info("exporting")
    assert capsys.readouterr().err == "exporting\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_thin_script(verb: str) -> None:
    script = REPOSITORY / "scripts" / f"{verb}.py"
    assert f'run_verb("{verb}")' in script.read_text()
    assert len(script.read_text().splitlines()) < 12


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_is_read_by_its_verb(path: Path) -> None:
    verb = path.parent.name
    settings_class = getattr(import_module(f"spectro.verbs.{verb}"), VERBS[verb][0])
    settings = parse(verb, settings_class, ["--config", str(path)])
    for key, value in yaml.safe_load(path.read_text()).items():
        chosen = getattr(settings, key)
        if isinstance(value, dict) and not isinstance(chosen, dict):
            for inner, given in value.items():
                assert json.dumps(getattr(chosen, inner), default=str) == json.dumps(given)
        else:
            assert json.dumps(chosen, default=str) == json.dumps(value)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent.name == "study"], ids=lambda path: path.stem)
def test_every_study_sets_only_options_that_its_verbs_accept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectro.study.grid.weights_identity", str)  # the real one fetches published weights
    whole = parse("study", StudySettings, ["--config", str(path)])
    studies = [whole, *([replace(whole, quick=True).shortened()] if whole.shorter else [])]
    given = [("render", settings.rendering(name)) for settings in studies for name in settings.images]
    given += [(one.verb, one.settings) for settings in studies for one in grid(settings)]
    for verb, text in sorted({(verb, yaml.safe_dump(one)) for verb, one in given}):
        (tmp_path / "config.yaml").write_text(text)
        settings_class = getattr(import_module(f"spectro.verbs.{verb}"), VERBS[verb][0])
        parse(verb, settings_class, ["--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("[010]", ["010"]),
        ("[01, 0x1f, 1e3, 3.10, 1_0, -1]", ["01", "0x1f", "1e3", "3.10", "1_0", "-1"]),
        ("[2020-01-01, no, null, ~, 1:30]", ["2020-01-01", "no", "null", "~", "1:30"]),
        ("['010', \"no\", \u00e9, 7]", ["010", "no", "\u00e9", 7]),
        ("010", ["010"]),
        ("3, F01", ["3", "F01"]),
        ("[3, 6]", [3, 6]),
        ("[]", []),
    ],
)
def test_speaker_names_are_parsed_as_written(given: str, names: list[str | int], tmp_path: Path) -> None:
    for arguments in (["--valid_speakers", given], [f"--valid_speakers={given}"]):
        assert parse("finetune", FinetuneSettings, ["--seed", "3", *arguments]).valid_speakers == names
    if given.startswith("["):
        config = tmp_path / "a.yaml"
        config.write_text(f"dropout: 1e-1\nvalid_speakers: {given}\ntrain: {{epochs: 010}}\n", encoding="utf-8")
        settings = parse("finetune", FinetuneSettings, ["--config", str(config)])
        assert settings.valid_speakers == names
        assert (settings.dropout, settings.train.epochs) == (0.1, 8)


def test_an_unterminated_list_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_verb("finetune", ["--valid_speakers", "[3"])
    assert ended.value.code == 2
    assert "valid_speakers" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_help_prints_on_a_console_of_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in VERBS:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        with pytest.raises(SystemExit) as ended:
            run_verb(verb, ["--help"])
        assert ended.value.code == 0


def test_predict_prints_all_rows_on_a_console_that_cannot_encode_the_paths(world: World, tmp_path: Path) -> None:
    encoding = "cp1252"
    names = ["a.wav", "\u0142\u00f3d\u017a \u2603.wav", "\U0001f600.wav"]
    for name in names:
        (tmp_path / name).write_bytes(next(world.corpus.rglob("*.wav")).read_bytes())
    command = [sys.executable, "-m", "spectro", "predict", str(tmp_path), "--checkpoint", str(world.checkpoint)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(encoding)
    shown = done.stdout.decode(encoding)
    expected = sorted(str(tmp_path / name).encode(encoding, "backslashreplace").decode(encoding) for name in names)
    assert sorted(row["path"] for row in csv.DictReader(io.StringIO(shown))) == expected


def test_render_and_finetune_print_the_labels_with_their_counts(
    wav: WriteWav, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("train/joy/a.wav", "train/grief/b.wav", "test/joy/c.wav")):
        wav(f"corpus/{name}", voice(pitch=120.0 + 20 * number))
    arguments = ["--source", str(tmp_path / "corpus"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert run_verb("render", ["--corpus", "folder", *arguments]) == 0
    told = capsys.readouterr().err
    assert told.startswith("labels: grief 1, joy 2; speakers: unknown\ntest, train are taken as parts of a split")
    settings = ["--index", str(world.images), "--backbone", "test_efficientnet", "--batch_size", "8"]
    assert run_verb("finetune", [*settings, "--out", str(tmp_path / "net"), "--weights", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("labels: angry 16, calm 16, happy 16; speakers: 8\n")


def test_render_finetune_and_study_have_configs() -> None:
    assert {path.parent.name for path in CONFIGS} >= {"render", "finetune", "study"}


def test_options_override_a_config(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("train: {epochs: 3, mixup: 0.0}\nbackbone: vgg16\n")
    settings = parse("finetune", FinetuneSettings, ["--config", str(config), "--train.epochs", "5"])
    assert (settings.backbone, settings.train.epochs, settings.train.mixup) == ("vgg16", 5, 0.0)


def test_a_spec_from_a_checkpoint_can_be_changed_with_options(world: World, tmp_path: Path) -> None:
    description = world.checkpoint / "spectro.json"
    settings = parse("render", RenderSettings, ["--spec", str(description), "--spec.width", "90"])
    assert settings.spec == SpectrogramSpec.from_dict(world.trained.about.spec.to_dict() | {"width": 90})
    assert parse("render", RenderSettings, [f"--spec={world.images / 'spec.json'}"]).spec == world.trained.about.spec
    with pytest.raises(SpecError, match="not a readable spec"):
        parse("render", RenderSettings, ["--spec", str(tmp_path / "gone.json")])


def test_an_invalid_value_ends_with_a_single_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("render", ["--spec.height", "0"]) == 2
    assert capsys.readouterr().err == "spectro render: height is 0; it must be a whole number from 1 to 2048\n"


def test_an_unknown_option_ends_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_verb("render", ["--heigth", "3"])
    assert ended.value.code == 2
    assert "heigth" in capsys.readouterr().err


def test_an_interrupt_prints_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupt)
    assert run_verb("render", []) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_tilde_expands_to_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from spectro.verbs.predict import PredictSettings

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.yaml").write_text("out: ~/rows.csv\n")
    given = parse("predict", PredictSettings, ["~/calls", "~", "a~b.wav", "~clip.wav", "--out", "~/p.csv"])
    assert given.out == tmp_path / "p.csv"
    assert given.inputs == [str(tmp_path / "calls"), str(tmp_path), "a~b.wav", "~clip.wav"]
    assert (
        parse("predict", PredictSettings, ["a", "--config", str(tmp_path / "rows.yaml")]).out == tmp_path / "rows.csv"
    )
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SpectrogramSpec(hop_length=99).to_dict()))
    rendered = parse("render", RenderSettings, ["--source=~/corpus", "--spec=~/spec.json"])
    assert rendered.source == tmp_path / "corpus" and rendered.spec.hop_length == 99


def test_errors_are_escaped_and_shortened_and_explain_a_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> str:
        def parse(*_: object) -> None:
            raise error

        monkeypatch.setattr(cli, "parse", parse)
        assert run_verb("predict", []) == 2
        return capsys.readouterr().err

    assert fail(SpectroError("a\x1b[2J\u202e\nb" + "x" * 10**6)).startswith(r"spectro predict: a\x1b[2J\u202e\nbxx")
    assert len(fail(SpectroError("x" * 10**6))) < 1100
    told = fail(OSError(errno.ENOSPC, "No space left on device", "/data/a\x1b.csv"))
    assert told.startswith("spectro predict: /data/a\\x1b.csv: No space left on device; make room, and run the same ")


def test_an_unexpected_exception_ends_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(cli, "parse", fail)
    assert run_verb("predict", []) == 2
    assert "RuntimeError: a mistake" in capsys.readouterr().err


def test_the_command_lists_its_verbs_and_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main([]) == 2
    assert main(["sing"]) == 2
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"spectro {spectro.__version__}\n"


def test_importing_the_package_imports_neither_torch_librosa_nor_pandas() -> None:
    code = "import sys, spectro; sys.exit(any(name in sys.modules for name in ('torch', 'librosa', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_errors_derive_from_spectro_error_and_are_documented() -> None:
    from spectro import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(one, SpectroError) for one in classes)
    assert errors.__doc__ is not None
    assert all(one.__name__ in errors.__doc__ for one in classes)


def test_the_option_index_accepts_several_folders() -> None:
    for arguments, expected in (
        (["--index", "a"], [Path("a")]),
        (["--index", "a", "b c", "--seed", "3"], [Path("a"), Path("b c")]),
        (["--index=a", "--seed", "3"], [Path("a")]),
        (["--seed", "3", "--index", "~/a", "b"], [Path.home() / "a", Path("b")]),
        ([], [Path("data/images/synthetic")]),
    ):
        assert parse("finetune", FinetuneSettings, arguments).indexes == expected


@pytest.mark.parametrize("name", ["sounds", "unheard_sounds", "teachers"])
def test_other_options_accept_several_folders(name: str) -> None:
    arguments = [f"--{name}", "a", "b", "--remember", "1", "--sounds", "c"]
    if name == "sounds":
        arguments = arguments[:-2]
    assert getattr(parse("finetune", FinetuneSettings, arguments), name) == [Path("a"), Path("b")]


def test_a_fold_may_be_a_name_or_a_number() -> None:
    assert parse("finetune", FinetuneSettings, ["--fold", "savee"]).fold == "savee"
    assert parse("finetune", FinetuneSettings, ["--fold", "3"]).fold == 3


def test_an_option_may_be_a_reserved_word_of_python() -> None:
    from spectro.verbs.weights import WeightsSettings

    settings = parse("weights", WeightsSettings, ["mn04_as", "--from", "~/file.pt"])
    assert (settings.names, settings.from_) == (["mn04_as"], Path.home() / "file.pt")
    assert parse("weights", WeightsSettings, []).names == []


def test_a_spec_may_be_given_as_the_name_of_pretrained_weights() -> None:
    from spectro.model.pretrained import SPECS
    from spectro.rendering.render import RenderSettings

    settings = parse("render", RenderSettings, ["--spec", "mn04_as-16k", "--spec.width", "96"])
    assert (settings.spec.height, settings.spec.width) == (SPECS["mn04_as-16k"].height, 96)
