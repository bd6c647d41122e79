"""The tutorials and the notebook run from top to bottom, as a reader would run them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TUTORIALS = sorted((REPOSITORY / "docs/tutorials").glob("*.md"))
NOTEBOOK = REPOSITORY / "docs/notebooks/recording-to-answer.ipynb"

LONGEST_S = 600


def _follow(command: list[str], folder: Path) -> None:
    """Run a command in a folder as a reader would, with this environment's programs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": path, "MPLBACKEND": "agg"}
    environment.pop("SPECTRO_CHECKPOINT", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the first command of each tutorial has been run, so that it finds its work done."""
    folder = tmp_path_factory.mktemp("rendered")
    _follow([sys.executable, "-m", "spectro", "render", "--corpus", "synthetic"], folder)
    return folder


@pytest.mark.slow  # they render, train and serve: a few minutes in all
@pytest.mark.timeout(LONGEST_S + 20)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_commands_of_a_tutorial_run(page: Path, rendered: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    shutil.copytree(rendered / "data", tmp_path / "data")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/mn04-voices").symlink_to(REPOSITORY / "checkpoints/mn04-voices")
    script = tmp_path / "follow.sh"
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, (language, text) in enumerate(blocks):
        if language == "python":
            (tmp_path / f"block{number}.py").write_text(text, encoding="utf-8")
            text = f"python block{number}.py\n"
        parts.append(text)
    script.write_text("\n".join(parts), encoding="utf-8")
    _follow([shutil.which("bash") or "bash", str(script)], tmp_path)


@pytest.mark.slow  # it starts a kernel and PyTorch
def test_the_notebook_runs(tmp_path: Path) -> None:
    program = (
        "import sys, nbformat, nbclient\n"
        "nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), timeout=200).execute(cwd=sys.argv[2])\n"
    )
    _follow([sys.executable, "-c", program, str(NOTEBOOK), str(tmp_path)], tmp_path)


def test_the_notebook_contains_its_plots_and_no_errors_or_stderr() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
