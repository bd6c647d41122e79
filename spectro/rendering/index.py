"""The index of a rendering, which training, evaluation and features read."""

from pathlib import Path

import pandas as pd

from spectro.errors import RenderError
from spectro.files import printable
from spectro.picture.spec import SpectrogramSpec

INDEX, SPEC, SETTINGS, FAILURES, REJECTED = "index.parquet", "spec.json", "render.json", "failures.csv", "rejected.csv"


def read_index(folder: Path) -> tuple[pd.DataFrame, SpectrogramSpec]:
    """Read the image index of a rendering.

    Args:
        folder: a rendering's output folder.

    Returns:
        the index, and the spec of its pictures.

    Raises:
        RenderError: there is no complete rendering in `folder`.
    """
    try:
        index = pd.read_parquet(folder / INDEX)
    except (OSError, ValueError) as error:
        hint = "run scripts/render.py first" if not (folder / INDEX).exists() else "render again"
        raise RenderError(f"{printable(folder)}: holds no readable {INDEX}; {hint}") from error
    spec = SpectrogramSpec.from_file(folder / SPEC)
    if "spec" not in index or set(index["spec"]) != {spec.fingerprint}:
        raise RenderError(f"{printable(folder)}: {INDEX} and {SPEC} disagree; render again")
    return index, spec
