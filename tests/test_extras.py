"""The smallest installation predicts, and names the missing extra otherwise; pins satisfy the requirements."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from spectro.cli import TRAINING
from tests.conftest import REPOSITORY, World, WriteWav

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({TRAINING!r})); from spectro.cli import main; sys.exit(main())"
"""Program that runs spectro with none of these packages importable."""


def _spectro(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def test_predicting_and_rendering_need_no_package_of_the_extra_train(
    world: World, wav: WriteWav, tmp_path: Path
) -> None:
    clip, checkpoint = wav(), ("--checkpoint", world.checkpoint, "--engine", "torch")
    for verb, out in (("predict", "rows.csv"), ("timeline", "timeline.csv")):
        done = _spectro(verb, clip, *checkpoint, "--out", tmp_path / out)
        assert done.returncode == 0 and (tmp_path / out).stat().st_size > 100, done.stderr
    for verb, inputs, out in (("explain", (clip,), "why"), ("adapt", (clip, wav("other.wav")), "adapted")):
        done = _spectro(verb, *inputs, "--checkpoint", world.checkpoint, "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    done = _spectro("render", "--corpus", "synthetic", "--source", world.corpus, "--out", tmp_path / "images")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("verb", "arguments", "package"),
    [
        ("finetune", (), "albumentations|pytorch_lightning"),
        ("render", ("--copies", "1"), "librosa"),
    ],
)
def test_a_verb_that_lacks_a_package_names_the_extra(
    world: World, tmp_path: Path, verb: str, arguments: tuple[str, ...], package: str
) -> None:
    images = ("--index", world.images) if verb == "finetune" else ("--corpus", "synthetic", "--source", world.corpus)
    done = _spectro(verb, *images, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert any(name in done.stderr for name in package.split("|")) and "install spectro[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_dependency_has_a_matching_pin_without_a_url() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "://" in line or " @ " in line]
    pins: dict[str, list[str]] = {}
    for pin in map(Requirement, lines):
        pins.setdefault(pin.name, []).extend(one.version for one in pin.specifier)
    extras = PROJECT["optional-dependencies"]
    wanted = map(Requirement, [*PROJECT["dependencies"], *extras["dev"], *extras["train"], *extras["serve"]])
    for one in wanted:
        if one.name != "spectro":
            assert pins.get(one.name.lower()), f"{one.name} has no pin: make constraints"
            assert all(version in one.specifier for version in pins[one.name.lower()]), one
