"""Adding a setting keeps the identities of earlier results: the values here are those of version 0.1.0."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pandas as pd
import pytest

from spectro.audio.augment import AugmentSettings
from spectro.baselines import classical
from spectro.baselines.classical import ClassicalSettings
from spectro.baselines.features import FeatureSettings
from spectro.corpora.splits import pictures_fingerprint
from spectro.files import fingerprint, read_json, write_json
from spectro.identity import identity_of, restored
from spectro.picture.spec import SpectrogramSpec
from spectro.rendering import render
from spectro.rendering.render import RenderSettings
from spectro.train import finetune
from spectro.train.settings import FinetuneSettings
from tests.conftest import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Before:
    size: int = 3
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class GrownInner(Inner):
    LATER: ClassVar[dict[str, Any]] = {"names": ()}
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Grown:
    LATER: ClassVar[dict[str, Any]] = {"window": "hann"}
    size: int = 4
    window: str = "kaiser"
    inner: GrownInner = field(default_factory=GrownInner)


def test_an_added_field_changes_the_identity_only_where_it_has_an_effect() -> None:
    before = identity_of(Before())
    assert before == {"size": 3, "inner": {"rate": 0.5}}
    assert identity_of(Grown(size=3, window="hann", inner=GrownInner(names=()))) == before
    assert identity_of(Grown()) == {"size": 4, "window": "kaiser", "inner": {"rate": 0.5, "names": ["a"]}}
    assert identity_of(Grown(), without=["inner", "size"]) == {"window": "kaiser"}
    assert restored(Grown, {"size": 3}).window == "hann", "not today's default"
    assert restored(Grown, {"window": "kaiser"}).window == "kaiser"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SpectrogramSpec(), "27eae4f0547697c2"),
        (SpectrogramSpec(colormap="viridis"), "27eae4f0547697c2"),
        (SpectrogramSpec(channels="colormap", height=64), "1567acc002832269"),
        (SpectrogramSpec(scale="full_scale", low=-80, high=0, trim_db=None), "0dce707cce721f6e"),
    ],
)
def test_specs_keep_their_fingerprints(spec: SpectrogramSpec, expected: str) -> None:
    assert spec.fingerprint == expected
    assert SpectrogramSpec.from_dict(spec.to_dict()) == spec
    told = {name: value for name, value in asdict(spec).items() if name not in SpectrogramSpec.LATER}
    assert SpectrogramSpec.from_dict(told) == spec


def test_renderings_keep_their_fingerprints() -> None:
    assert fingerprint(render._settings_dict(RenderSettings(corpus="synthetic"))) == "839044e98fb14554"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "0e5cc57d3b70c75e"),
        ({"train_on": "valid", "monitor": "last", "seed": 2}, "fcf9f1d1eeb8a0fb"),
        ({"valid_speakers": [10, "9"]}, "0e3bec365170e462"),
        ({"teachers": [], "teacher_share": 0.3}, "0e5cc57d3b70c75e"),
    ],
)
def test_training_runs_keep_their_fingerprints(changes: dict[str, Any], expected: str) -> None:
    data: Any = SimpleNamespace(spec=SimpleNamespace(fingerprint="spec"), identity={"data": "data"})
    settings = FinetuneSettings(weights="none", **changes)
    unturned, turned = (SimpleNamespace(turned=turned) for turned in (False, True))
    assert fingerprint(finetune.run_identity(settings, data, unturned)) == expected
    assert fingerprint(finetune.run_identity(settings, data, turned)) != expected


def test_sounds_are_identified_by_their_content_and_older_indexes_by_their_names() -> None:
    older = pd.DataFrame({"clip_id": ["a", "b"]})
    newer = older.assign(content_mark=["1-x", "2-y"])
    assert pictures_fingerprint(older) == fingerprint(["a", "b"])
    assert pictures_fingerprint(newer) != pictures_fingerprint(newer.assign(content_mark=["1-x", "2-z"]))


def test_teachers_are_identified_by_their_weights_and_temperature(tmp_path: Path) -> None:
    data: Any = SimpleNamespace(spec=SimpleNamespace(fingerprint="spec"), identity={"data": "data"})
    net: Any = SimpleNamespace(turned=False)

    def found(folder: Path, share: float = 0.8) -> dict[str, Any]:
        return finetune.run_identity(
            FinetuneSettings(weights="none", teachers=[folder], teacher_share=share), data, net
        )

    shipped = REPOSITORY / "checkpoints/mobilenet-ravdess"
    shutil.copytree(shipped, tmp_path / "moved")
    known = found(shipped)
    assert found(tmp_path / "moved") == known
    assert known["teacher_share"] == 0.8 and known != found(shipped, share=0.7)
    content = read_json(shipped / "spectro.json")
    write_json(tmp_path / "moved" / "spectro.json", content | {"temperature": content["temperature"] + 0.1})
    assert found(tmp_path / "moved") != known
    shutil.copy(shipped / "spectro.json", tmp_path / "moved")
    with (tmp_path / "moved" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert found(tmp_path / "moved") != known


def test_classical_systems_and_their_features_keep_their_fingerprints() -> None:
    assert fingerprint(classical._plain(ClassicalSettings())) == "d0f4d7d1349fce97"
    features = {"features": FeatureSettings(kind="egemaps").identity(), "spec": identity_of(SpectrogramSpec())}
    assert fingerprint(features | {"augment": identity_of(AugmentSettings(seed=1))}) == "411f62ce6424ae01"
    assert fingerprint(FeatureSettings().identity()) == "7afe3d09350e6649"
