"""What the documentation shows is run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize("page", ["extending.md"])
def test_a_pages_examples_run(page: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    program = tmp_path / "examples.py"
    program.write_text("\n".join([*blocks, "print('the end')"]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(  # in a process of its own: they add to registries
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
