"""What a network remembers of its starting weights' tags, and the speech detector that this gives it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spectro.errors import TrainingError, WeightsError
from spectro.model.backbones import SpectrogramNet
from spectro.model.pretrained import PRETRAINED, StartingWeights
from spectro.picture import png
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_indexes
from spectro.train import speech
from spectro.train import tags as module
from spectro.train.data import PictureDataModule
from spectro.train.finetune import finetune
from spectro.train.module import Classifier, TrainingSettings
from spectro.train.speech import read_sounds
from spectro.train.tags import COLUMNS, SPEECH
from tests.conftest import World, finetune_settings
from tests.train.test_speech import sounds  # noqa: F401  a fixture

CLASSES = 4


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Linear:
    """Starting weights with an output layer, named `heard`; returns that layer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = StartingWeights(
        name="heard",
        title="a network for tests",
        network="test_efficientnet",
        families=(),
        specs={},
        tags=True,
        url="",
        sha256="0" * 64,
        licence="none",
        parameters=0,
    )
    monkeypatch.setitem(PRETRAINED, "heard", own)
    torch.manual_seed(0)
    backbone = timm.create_model("test_efficientnet", num_classes=0)
    output = nn.Linear(backbone.head_hidden_size, CLASSES)
    state = backbone.state_dict() | {f"classifier.{name}": value for name, value in output.state_dict().items()}
    own.path.parent.mkdir(parents=True)
    save_file({name: value.detach().contiguous() for name, value in state.items()}, own.path)
    return output


def test_the_tag_is_the_highest_of_the_windows_of_what_sounds(
    heard: nn.Linear, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, spec = read_indexes([world.images])
    rows = index.head(3)
    found = module.tags("heard", rows, spec, tmp_path)
    assert found.shape == (3,)
    net = SpectrogramNet("test_efficientnet", 1).eval()
    state = load_file(PRETRAINED["heard"].path)
    net.backbone.load_state_dict({name: value for name, value in state.items() if not name.startswith("classifier")})
    net.set_normalisation([0.5] * net.channels, [0.5] * net.channels)
    pixels = png.read(Path(rows["image"].iloc[0]), spec).pixels
    sounding = np.flatnonzero(pixels.any(axis=0))
    own = pixels[:, sounding[0] : sounding[-1] + 1]
    assert own.shape[1] < COLUMNS  # so it is repeated, in one window and more
    own = np.tile(own, -(-COLUMNS // own.shape[1]))
    windows = [own[:, :COLUMNS], own[:, -COLUMNS:]]
    with torch.inference_mode():
        each = [torch.sigmoid(heard(net.embed(torch.from_numpy(one.copy())[None, None])))[0] for one in windows]
    np.testing.assert_allclose(found[0], max(float(one[SPEECH]) for one in each), rtol=1e-4)

    monkeypatch.setattr(module, "_tags", None)  # kept: not computed again
    np.testing.assert_array_equal(module.tags("heard", rows, spec, tmp_path), found)
    with pytest.raises(TypeError):
        module.tags("heard", rows.head(2), spec, tmp_path)


def test_sounds_are_drawn_like_a_corpus_and_targets_carry_the_tag_of_their_clip(world: World, sounds: Path) -> None:  # noqa: F811
    data = PictureDataModule(world.images, batch_size=8, copies="all")
    others = read_sounds([sounds], data.spec)
    known = np.linspace(0, 1, len(others), dtype=np.float32)
    alone = len(data.train_dataloader().dataset)
    data.hear(others, known)
    dataset = data.train_dataloader().dataset
    assert len(dataset) == alone + len(others)
    for number, row in data.rows["train"].iterrows():
        _picture, target, group = dataset[number]
        assert group == 0 and target[: len(data.labels)].argmax() == row["target"]
        assert target[len(data.labels) :].tolist() == [1]
    for number, expected in enumerate(known):
        _picture, target, group = dataset[alone + number]
        assert group == 1 and not target[: len(data.labels)].any()
        assert target[len(data.labels) :].tolist() == [expected]
    assert {draw.row for draw in data.train_dataloader().sampler} == set(range(len(dataset)))
    shown = torch.cat([groups for _pictures, _targets, groups in data.calibration_dataloader()])
    assert shown.bincount().tolist() == [len(data.untouched), len(others)]  # batch norms see what they were trained on
    assert data.voiceless()["clip_id"].tolist() == others["clip_id"][known < 0.5].tolist() != []


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_bias_lies_halfway_between_speech_and_voiceless_sounds(
    overlapping: bool,
    world: World,
    sounds: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = PictureDataModule(world.images, batch_size=8)
    others = read_sounds([sounds], data.spec)
    voices = np.arange(len(others)) % 3 == 0
    data.hear(others, voices.astype(np.float32))
    levels = {
        "valid": np.linspace(4, 6, len(data.rows["valid"])),
        "voiceless": np.linspace(-3, 1, int((~voices).sum())),
    }
    levels["voiceless"] += 9 * overlapping

    def embed(_net: object, rows: pd.DataFrame, *_rest: object) -> np.ndarray:
        clips = set(rows["clip_id"])
        part = "voiceless" if clips <= set(others["clip_id"]) else "valid"
        assert part == "valid" or clips == set(others["clip_id"][~voices])  # voices are not taken for sounds
        found = levels[part] if len(rows) == len(levels[part]) else np.full(len(rows), 5.0)
        return found.astype(np.float32)[:, None]

    monkeypatch.setattr(speech, "_embeddings", embed)
    output = nn.Linear(1, 1)
    nn.init.constant_(output.weight, 2.0)
    found, _figures = speech.remembered(SpectrogramNet("test_efficientnet", 3), output, data, [], 0)
    low = 2 * np.quantile(levels["valid"], speech.REFUSED)
    high = low if overlapping else 2 * np.quantile(levels["voiceless"], 1 - speech.ANSWERED)
    assert found.weight == (2.0,)
    np.testing.assert_allclose(found.bias, -(low + high) / 2, rtol=1e-5)


def test_a_sound_has_no_loss_of_labels_and_a_mixture_has_its_share() -> None:
    net = SpectrogramNet("test_efficientnet", 3)
    output = nn.Linear(net.features, 1)
    possible = torch.tensor([[True, True, True], [False] * 3])
    model = Classifier(net, TrainingSettings(label_smoothing=0.3), possible=possible, tag=output, remember=1.0)
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    clip = torch.cat([torch.tensor([[0.0, 1.0, 0.0]]), torch.rand(1, 1), torch.tensor([[1.0, 0.0]])], dim=1)
    sound = torch.cat([torch.zeros(1, 3), torch.rand(1, 1), torch.tensor([[0.0, 1.0]])], dim=1)
    expected = -(torch.tensor([0.1, 0.8, 0.1]) * torch.log_softmax(logits[0], 0)).sum()
    torch.testing.assert_close(model.loss(logits, clip), expected)
    torch.testing.assert_close(model.loss(logits, sound), torch.tensor(0.0))
    torch.testing.assert_close(model.loss(logits, 0.25 * clip + 0.75 * sound), 0.25 * expected)
    features = torch.randn(1, net.features)
    wanted = nn.functional.binary_cross_entropy(torch.sigmoid(output(features)), clip[:, 3:-2])
    torch.testing.assert_close(model._tag_loss(features, clip), wanted)


def test_the_tag_of_speech_becomes_the_detector(
    heard: nn.Linear,
    world: World,
    sounds: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_tags", lambda _weights, rows, _spec: np.full(len(rows), 0.05, np.float32))
    training = TrainingSettings(epochs=8, learning_rate=1e-2)
    settings = finetune_settings(
        world.images,
        tmp_path / "run",
        weights="heard",
        sounds=[sounds],
        unheard_sounds=[sounds],
        remember=1.0,
        train=training,
    )
    trained = finetune(settings)
    detector = trained.about.speech
    assert detector is not None and len(detector.weight) == trained.net.features
    told = json.loads((tmp_path / "run" / "spectro.json").read_text())["sounds"]
    assert {name: one["sounds"] for name, one in told["sources"].items()} == {"clicks": 8, "noise": 8, "tones": 8}
    assert set(told["refused"]) == {"train", "valid", "test"}
    assert max(told["refused"].values()) <= 0.25 and max(one["answered"] for one in told["sources"].values()) <= 0.5
    rows = list(Predictor(tmp_path / "run", engine="torch").predict_folder(world.corpus, sounds.parent / "sounds"))
    spoken = {
        kind: np.mean([one.label != "no speech" for one in rows if kind in one.path])
        for kind in ("speaker", "/sounds/")
    }
    assert spoken["speaker"] > 0.75 and spoken["/sounds/"] < 0.25

    monkeypatch.setattr(module, "_tags", None)  # a finished run is not trained, nor its clips tagged, again
    again = finetune(settings)
    assert again.about.speech == detector
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(replace(settings, remember=0.5))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"remember": -1.0}, "remember is -1.0"),
        ({"unheard_sounds": [Path("sounds")]}, "unheard_sounds is for remember"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(TrainingError, match=problem):
        finetune_settings(Path("images"), Path("run"), **{"sounds": [Path("sounds")], **changes})


def test_weights_without_tags_and_heads_with_another_layer_are_refused(
    heard: nn.Linear,
    world: World,
    sounds: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = finetune_settings(world.images, tmp_path / "run", sounds=[sounds], remember=1.0)
    with pytest.raises(TrainingError, match="none have no tag Speech to remember: start from mn04_as, yamnet"):
        finetune(settings)
    with pytest.raises(TrainingError, match="remember needs sounds"):
        finetune(replace(settings, weights="heard", sounds=[]))
    with pytest.raises(TrainingError, match="set hidden, or remember, to 0"):
        finetune(replace(settings, weights="heard", hidden=4))
    path = PRETRAINED["heard"].path
    state = load_file(path)
    save_file({name: value for name, value in state.items() if not name.startswith("classifier")}, path)
    with pytest.raises(WeightsError, match="the converted weights hold no output layer; remove"):
        finetune(replace(settings, weights="heard"))
