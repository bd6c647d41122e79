"""The index of a rendering, which training, evaluation and features read."""

from collections.abc import Sequence
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
        RenderError: `folder` holds no complete rendering.
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


def read_indexes(folders: Sequence[Path]) -> tuple[pd.DataFrame, SpectrogramSpec]:
    """Read the image indexes of renderings with one spec as a single index, whose column `image` holds full paths.

    Args:
        folders: output folders of renderings, at least one.

    Returns:
        the index, and the spec of its pictures.

    Raises:
        RenderError: a folder holds no complete rendering, has another spec, or shares a clip with another folder.
    """
    indexes, first = [], SpectrogramSpec()
    for place, folder in enumerate(folders):
        index, spec = read_index(folder)
        first = first if place else spec
        if spec.fingerprint != first.fingerprint:
            raise RenderError(
                f"{printable(folder)}: was rendered with spec {spec.fingerprint}, {printable(folders[0])} with "
                f"{first.fingerprint}; render both with --spec {printable(folders[0] / SPEC)}"
            )
        indexes.append(index.assign(image=[str(folder / name) for name in index["image"]]))
    whole = pd.concat(indexes, ignore_index=True)
    if twice := whole.loc[whole.duplicated(["clip_id", "copy"]), "clip_id"].tolist():
        raise RenderError(
            f"the clip {printable(twice[0])} is in two of these renderings: name each corpus once; recordings of your "
            "own corpora need different paths below their folder or CSV"
        )
    return whole, first
