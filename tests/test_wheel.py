"""The wheel contains the shipped checkpoint, and nothing that only the repository needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, WriteWav


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return next(out.glob("spectro-*.whl"))


def test_the_wheel_contains_only_the_package_with_its_checkpoint(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    checkpoint = {f"spectro/checkpoints/yamnet-voices/{name}" for name in ("model.safetensors", "spectro.json")}
    pages = {"spectro/serve/static/index.html", "spectro/study/page.html", "spectro/model/card.md.j2"}
    assert checkpoint | pages | {"spectro/py.typed"} <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"spectro"}
    assert not [name for name in names if "training" in name or name.endswith(("curves.png", ".pyc"))]
    assert wheel.stat().st_size < 8 * 2**20


def test_an_installed_wheel_classifies_a_clip_in_an_empty_folder(wheel: Path, wav: WriteWav, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "SPECTRO_CHECKPOINT"}
    environment |= {"PYTHONPATH": str(site), "SPECTRO_ENGINE": "torch"}
    told = subprocess.run(
        [sys.executable, "-c", "import spectro; print(spectro.__file__)"],
        cwd=empty, env=environment, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert told.strip() == str(site / "spectro/__init__.py")
    command = [sys.executable, "-m", "spectro", "predict", str(wav()), "--out", "rows.csv"]
    subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True)
    row = pd.read_csv(empty / "rows.csv").iloc[0]
    assert 0 < row["confidence"] <= 1 and len([name for name in row.index if name.startswith("p_")]) == 8 + 1
