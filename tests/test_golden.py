"""Files of an earlier release are still read, and mean the same: pictures, predictions, renderings, runs.

`tests/golden/write.py` wrote them. A failure here means that an upgrade costs users something: results are no longer
comparable, renderings are rendered again, or runs cannot be resumed.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectro.picture import png, spectrogram
from spectro.rendering.render import render
from tests.golden import write as golden

HERE = golden.HERE
WRITTEN = json.loads((HERE / "golden.json").read_text())


@pytest.mark.parametrize("name", golden.DRAWN)
def test_pictures_equal_those_of_an_earlier_release(name: str) -> None:
    spec = golden.DRAWN[name]
    picture = spectrogram.render(spectrogram.read(golden.clips()[0], spec), spec)
    before = png.read(HERE / f"{name}.png", spec).pixels  # raises for another spec
    difference = np.abs(picture.astype(int) - before.astype(int))
    assert difference.max() <= 2 and (difference > 0).mean() < 0.01, "more than SciPy's releases differ"


@pytest.mark.parametrize("name", golden.SHIPPED)
def test_shipped_networks_predict_the_probabilities_of_an_earlier_release(name: str) -> None:
    for clip, probabilities in golden.answers(name).items():
        assert probabilities == pytest.approx(WRITTEN["answers"][name][clip], abs=0.01), clip


def test_a_rendering_of_an_earlier_release_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HERE / "images", tmp_path / "images")
    shutil.copytree(HERE / "corpus", tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    done = render(golden.rendering(Path("images")))
    assert (done.images, done.reused) == (12, 12)
    before, after = (pd.read_parquet(folder / "images/index.parquet") for folder in (HERE, tmp_path))
    pd.testing.assert_frame_equal(after[before.columns], before)


def test_a_training_run_keeps_its_identity_of_an_earlier_release() -> None:
    assert golden.training(HERE / "images") == WRITTEN["training"]
