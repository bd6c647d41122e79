"""The tutorials and the notebook are run from top to bottom, as a reader would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TUTORIALS = sorted((REPOSITORY / "docs/tutorials").glob("*.md"))


@pytest.mark.slow  # they render, train and serve: some minutes together
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_can_be_followed(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/mn04-voices").symlink_to(REPOSITORY / "checkpoints/mn04-voices")
    commands = Path(sys.executable).parent
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": f"{commands}:{os.environ['PATH']}"}
    environment.pop("SPECTRO_CHECKPOINT", None)
    script = tmp_path / "follow.sh"
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, (language, text) in enumerate(blocks):
        if language == "python":
            (tmp_path / f"block{number}.py").write_text(text, encoding="utf-8")
            text = f"python block{number}.py\n"
        parts.append(text)
    script.write_text("\n".join(parts), encoding="utf-8")
    done = subprocess.run(
        [shutil.which("bash") or "bash", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow  # it starts a kernel and PyTorch
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = REPOSITORY / "docs/notebooks/recording-to-answer.ipynb"
    program = (
        "import sys, nbformat, nbclient\n"
        "nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), timeout=200).execute(cwd=sys.argv[2])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg"}
    environment.pop("SPECTRO_CHECKPOINT", None)
    done = subprocess.run(
        [sys.executable, "-c", program, notebook, tmp_path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
