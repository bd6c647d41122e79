"""A checkpoint may come from anyone: its values have the right type and size, or are refused in one sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from spectro.baselines.results import Clips
from spectro.errors import CheckpointError, CorpusError, SpecError, SpectroError, TrainingError
from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.model import checkpoint as checkpoints
from spectro.model.card import card
from spectro.model.checkpoint import Checkpoint
from spectro.model.metadata import Description, label_problem
from spectro.picture.spec import SpectrogramSpec
from spectro.rendering.index import read_index
from spectro.train.data import PictureDataModule
from spectro.train.finetune import finetune
from tests.conftest import REPOSITORY, SMALL, World, finetune_settings

DEEP: Any = 0
for _ in range(100):
    DEEP = [DEEP]
STRANGE = [None, True, -1, 1.5, 224.5, "x", [], [["a"]], {}, {"a": {"b": [None]}}, 10**400, "\x1b[31m" * 20_000]


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    checkpoints.save(world.trained, tmp_path / "net")
    return tmp_path / "net"


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    content = json.loads((folder / "spectro.json").read_text())
    (folder / "spectro.json").write_text(json.dumps(content | change))


def is_short_and_printable(error: BaseException) -> bool:
    text = str(error)
    return len(text) < 1_000 and text.isprintable()


def json_paths(content: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON; of lists only the first entry."""
    inner = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    return [place for key, one in inner for place in [(*before, key), *json_paths(one, (*before, key))]]


def test_values_of_any_type_are_accepted_or_raise_a_short_error(folder: Path) -> None:
    """Code that reads an accepted value must not fail."""
    whole = json.loads((folder / "spectro.json").read_text()) | {
        "heard_before": ["x/1"],
        "teachers": ["x (model.safetensors sha256:0)"],
        "teacher_share": 0.5,
    }
    found = json_paths(whole)
    assert len(found) > 90
    for place in found:
        for value in STRANGE:
            content = json.loads(json.dumps(whole))
            inner = content
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            try:
                about = Description.from_dict(content, folder)
                about.training_speakers()
                card(about, "net")
            except SpectroError as error:
                assert is_short_and_printable(error), (place, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"width": 10**6}}, "width is 1000000; it must be a whole number from 1 to 4096"),
        ({"spec": {"n_fft": 2**24}}, "n_fft is 16777216"),
        ({"spec": {"height": 10**9}}, "height is 1000000000"),
        ({"spec": {"height": 224.5}}, r"height is 224\.5"),
        ({"spec": {"height": True}}, "height is True"),
        ({"spec": {"channels": [["a"]]}}, r"channels is \[\['a'\]\]"),
        ({"spec": {"colormap": ["a"], "channels": "colormap"}}, r"colormap is \['a'\]"),
        ({"spec": [1]}, r"a spec is \[1\]"),
        ({"spec": {"trim_db": True}}, "trim_db is True"),
        ({"hidden": 10**12}, "hidden: Expected .int. <= 65536"),
        ({"hidden": 65_536}, "2 tensors are missing.* such as .head.4.bias."),
        ({"backbone": "eva02_enormous_patch14_clip_224"}, "does not fit its 'eva02_enormous.* tensors are missing"),
        ({"backbone": ["mobilenet"]}, "backbone: Expected .str., got .array."),
        ({"temperature": True}, "temperature: Expected .float., got .bool."),
        ({"temperature": 1e-300}, "temperature: Expected .float. >= 0.001"),
        ({"normalisation": {"mean": [0, 0], "std": [1, 1, 1]}}, "normalisation.mean has 2 values; it needs 1 or 3"),
        (
            {"normalisation": {"mean": [0, 0, 0], "std": [1, 0, 1]}},
            r"normalisation\.std\[1\]: Expected .float. >= 0\.0001",
        ),
        ({"dtype": "pickle"}, "dtype: Invalid enum value .pickle."),
        ({"format": True}, "not a checkpoint of format 1"),
        ({"split": {"speakers": {"train": 5}}}, "split.speakers.train: Expected .array., got .int."),
        ({"data": {"corpora": [["a"]], "labels": "emotion"}}, r"data\.corpora\[0\]: Expected .str., got .array."),
        ({"metrics": {"test": {"uar": "high"}}}, r"metrics\[\.\.\.\].uar: Expected .float., got .str."),
        ({"weights": DEEP}, "nested too deeply"),
    ],
)
def test_oversized_or_invalid_description_values_are_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message) as found:
        checkpoints.load(folder)
    assert is_short_and_printable(found.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "a": NaN}', "NaN is not a finite number"),
        (b'{"format": 1, "a": -Infinity}', "not a finite number"),
        (b'{"format": 1, "a": 1e999}', "1e999 is not a finite number"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b" " * (2**25 + 1), "larger than 33554432 bytes"),
        (b'{"format": 1, "a": "\\ud800"}', "surrogates not allowed"),
        (b"\xff", "decode"),
        (b"", "Expecting value"),
        (b"[]", "not a checkpoint of format 1"),
    ],
    ids=["nan", "infinity", "overflow", "deep", "long", "surrogate", "bytes", "empty", "list"],
)
def test_a_malformed_description_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "spectro.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(folder)
    if content != b"[]":
        with pytest.raises(SpecError, match=message):
            SpectrogramSpec.from_file(folder / "spectro.json")


def test_a_huge_network_is_refused_before_memory_is_allocated(folder: Path) -> None:
    rewrite(folder, {"backbone": "eva02_enormous_patch14_clip_224"})  # 4.3 billion parameters, 17 GB
    program = (
        "import resource, sys; from pathlib import Path; from spectro.errors import CheckpointError\n"
        "from spectro.model import checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: checkpoint.load(Path(sys.argv[1]))\n"
        "except CheckpointError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 500_000, "kilobytes"


def test_weights_with_another_shape_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | {"head.1.bias": torch.zeros(5)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.1\.bias is \(5,\); in its 'test_efficientnet' .* it is \(6,\)"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["happy"] * 6, "'happy' and 'happy' are alike"),
        (["a", "b", "c", "d", "Happy", "happy"], "'Happy' and 'happy' are alike"),
        (["a", "b", "c", "d", "e", ""], "the label '' is not printable text"),
        (
            ["a", "b", "c", "d", "e", None],
            "(the label None is not printable text|labels.5.: Expected .str., got .null.)",
        ),
        ([1, 2, 3, 4, 5, 6], "(the label 1 is not printable text|labels.0.: Expected .str., got .int.)"),
        (["a", "b", "c", "d", "e", " f"], "the label ' f' is not printable text"),
        (["a", "b", "c", "d", "e", "f\x1b[31m"], "is not printable text"),
        (["a", "b", "c", "d", "e", "f\u202e"], "is not printable text"),
        (["a", "b", "c", "d", "e", "unsure"], "'unsure' is reserved in tables for rows without an emotion"),
        (["a", "b", "c", "d", "e", "Silence"], "'Silence' is reserved in tables"),
        (["a", "b", "c", "d", "e", "no speech"], "'no speech' is reserved in tables"),
        (["a", "b", "c", "d", "e", "speech"], "'speech' is reserved in tables"),
        (["a", "b", "c", "d", "e", "f" * 101], "longer than 100 characters"),
    ],
)
def test_duplicate_unprintable_reserved_and_long_labels_are_refused(
    world: World, folder: Path, labels: list[Any], message: str
) -> None:
    rewrite(folder, {"labels": labels})
    with pytest.raises(CheckpointError, match=message) as found:
        checkpoints.load(folder)
    assert is_short_and_printable(found.value)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.of(net=world.trained.net, labels=tuple(labels), spec=SMALL)


def test_ordinary_and_non_ascii_labels_are_accepted() -> None:
    assert label_problem(["neutral", "Überrascht", "mi hai", "female_happy", "怒り"]) is None


def test_reserved_labels_are_refused_before_training(world: World, tmp_path: Path) -> None:
    index, _spec = read_index(world.images)
    index["corpus"] = "folder"
    index["emotion"] = index["emotion"].replace({"calm": "unsure"})
    (tmp_path / "images").symlink_to(world.images / "images")
    (tmp_path / "spec.json").write_bytes((world.images / "spec.json").read_bytes())
    pd.DataFrame(index).to_parquet(tmp_path / "index.parquet")
    with pytest.raises(CorpusError, match=r"'unsure' is reserved in tables .* give it another name, and render again"):
        PictureDataModule(tmp_path, protocol="random-leaky")
    with pytest.raises(CorpusError, match="'unsure' is reserved in tables"):
        Clips.of(index, "emotion", "random-leaky", 0)


def test_the_shipped_checkpoint_of_an_earlier_version_still_loads() -> None:
    shipped = checkpoints.load(REPOSITORY / "checkpoints" / "mobilenet-ravdess")
    assert shipped.about.parameters == 2_234_120 and shipped.about.temperature == 0.95
    assert shipped.about.spec == SpectrogramSpec() and shipped.about.spec.fingerprint == "27eae4f0547697c2"
    assert shipped.about.training.settings["spec"] == shipped.about.spec.fingerprint


def test_starting_weights_with_invalid_speaker_metadata_are_refused(world: World, folder: Path, tmp_path: Path) -> None:
    rewrite(folder, {"split": {"speakers": []}})
    with pytest.raises(CheckpointError, match=r"split\.speakers: Expected 'object', got 'array'"):
        finetune(finetune_settings(world.images, tmp_path / "run", weights=str(folder)))


def test_evaluating_a_checkpoint_with_incomplete_metadata_raises_a_short_error(
    world: World, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "spectro.json").read_text())
    rewrite(folder, {"split": content["split"] | {"protocol": "random-leaky"}, "training": {}})
    with pytest.raises(SpectroError) as found:
        evaluate(EvaluateSettings(checkpoint=folder, index=world.images, out=tmp_path / "report"))
    assert is_short_and_printable(found.value)


def test_a_temperature_out_of_range_is_refused_before_training(tmp_path: Path) -> None:
    for value in (0.0, 1e-9, 1e9, float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="temperature is"):
            finetune_settings(tmp_path, tmp_path, temperature=value)


def test_a_checkpoint_that_is_half_replaced_is_refused(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights beside an old description could answer wrongly without an error."""

    def full(*_given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints, "write_json", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(world.trained, folder)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.load(folder)
