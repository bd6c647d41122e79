import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from spectro.baselines import speech
from spectro.baselines.classical import ClassicalSettings, classical
from spectro.baselines.features import FeatureSettings
from spectro.baselines.speech import SpeechSettings, finetune, load
from spectro.errors import FeatureError, TrainingError, WeightsError
from spectro.files import held, read_json
from spectro.model.metadata import Result
from spectro.rendering.index import read_index
from spectro.schema import typed
from tests.conftest import RATE, World, voice

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values"),  # from AST's own 128 bands
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
NETWORKS = ("Wav2Vec2", "WavLM", "Hubert", "AST")


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny networks of the real classes, with random weights."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name in NETWORKS:
        own = {"max_length": 64} if name == "AST" else CONVOLUTIONS
        config = getattr(transformers, f"{name}Config")(**SMALL, **own)
        getattr(transformers, f"{name}Model")(config).save_pretrained(root / name)
        extractor: Any = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
        if name == "AST":
            extractor = transformers.ASTFeatureExtractor(max_length=64)
        extractor.save_pretrained(root / name)
    return root


def _settings(world: World, networks: Path, out: Path, **changes: Any) -> SpeechSettings:
    defaults = {"epochs": 2, "learning_rate": 1e-3, "model": str(networks / "Wav2Vec2"), "index": world.images}
    return SpeechSettings(**(defaults | {"out": out} | changes))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_network_gives_the_mean_of_a_hidden_layer(networks: Path, name: str) -> None:
    samples = voice(1.2)
    vector, names = speech.embed(samples, RATE, str(networks / name), -1)
    assert vector.shape == (16,) == (len(names),)
    extractor, net = load(str(networks / name), "AutoModel")
    with torch.inference_mode():
        inputs = extractor([samples], sampling_rate=RATE, return_tensors="pt")
        expected = net.eval()(**inputs).last_hidden_state[0].mean(0)
    if name != "AST":  # its last state is normalised once more
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    other, _ = speech.embed(samples, RATE, str(networks / name), 0)
    assert not np.allclose(vector, other)


def test_a_clip_shorter_than_a_convolution_has_a_finite_embedding(networks: Path) -> None:
    vector, _ = speech.embed(voice(0.01), RATE, str(networks / "Wav2Vec2"), -1)
    assert np.isfinite(vector).all()


def test_audio_is_resampled_to_the_sample_rate_of_the_network(networks: Path) -> None:
    model = str(networks / "Wav2Vec2")
    one, _ = speech.embed(voice(1.0, rate=16_000), 16_000, model, -1)
    other, _ = speech.embed(voice(1.0, rate=48_000), 48_000, model, -1)
    np.testing.assert_allclose(one, other, atol=0.02 * np.abs(one).max())


def test_a_linear_probe_on_frozen_features_runs_as_a_classical_baseline(
    world: World, networks: Path, tmp_path: Path
) -> None:
    features = FeatureSettings(kind="speech", model=str(networks / "Wav2Vec2"), layer=1)
    settings = ClassicalSettings(
        index=world.images, classifier="logistic", features=features, out=tmp_path, inner_folds=0, workers=1
    )
    run = classical(settings)
    kept = run.training.settings["features"]
    assert (kept["kind"], kept["layer"]) == ("speech", 1) and kept["model"].startswith("model.safetensors sha256:")
    assert run.metrics["test"].clips == 12


@pytest.mark.parametrize("name", ["Wav2Vec2", "AST"])
def test_a_network_is_fine_tuned_saved_and_evaluated(world: World, networks: Path, tmp_path: Path, name: str) -> None:
    settings = _settings(world, networks, tmp_path / "run", model=str(networks / name), copies="all")
    run = finetune(settings)
    assert run == typed(read_json(tmp_path / "run" / "run.json"), Result)
    assert run.training.epoch in (0, 1)
    table = pd.read_csv(tmp_path / "run" / "evaluation-test" / "predictions.csv", dtype={"speaker": str})
    assert set(table["speaker"]) == set(run.split.speakers["test"])

    _extractor, kept = load(str(tmp_path / "run" / "model"), "AutoModelForAudioClassification")
    assert kept.config.id2label == dict(enumerate(name[2:] for name in table if name.startswith("p_")))
    start = load(str(networks / name), "AutoModel")[1].state_dict()
    prefix = kept.base_model_prefix
    moved = {key: not torch.equal(value, kept.state_dict()[f"{prefix}.{key}"]) for key, value in start.items()}
    assert any(moved.values())
    assert not any(changed for key, changed in moved.items() if key.startswith("feature_extractor."))


def test_a_killed_run_resumes_from_its_last_complete_epoch(
    world: World, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(_settings(world, networks, tmp_path / "whole"))

    class Killed(Exception):
        pass

    cut = _settings(world, networks, tmp_path / "cut")
    original = speech._trainer

    def dying(*given: Any) -> Any:
        trainer = original(*given)

        class Dies(transformers.TrainerCallback):  # type: ignore[misc]
            def on_epoch_begin(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
                if state.epoch >= 1:
                    raise Killed

        trainer.add_callback(Dies())
        return trainer

    monkeypatch.setattr(speech, "_trainer", dying)
    with pytest.raises(Killed):
        finetune(cut)
    monkeypatch.undo()
    half = tmp_path / "cut" / "training" / "checkpoint-99"  # killed while this was written
    half.mkdir()
    assert (tmp_path / "cut" / "training").exists() and not (tmp_path / "cut" / "run.json").exists()
    resumed = finetune(cut)
    assert resumed.metrics == whole.metrics
    assert resumed.training.epoch == whole.training.epoch
    again = finetune(cut)
    assert again.metrics == whole.metrics
    assert again.training.seconds == resumed.training.seconds > 0


@pytest.fixture(scope="module")
def finished_run(world: World, networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it."""
    out = tmp_path_factory.mktemp("settled") / "run"
    finetune(_settings(world, networks, out))
    return out


class Evil:
    """Create a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_malicious_pickle_is_not_executed(
    world: World, networks: Path, finished_run: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    last = max((tmp_path / "run" / "training").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert (last / name).exists()
    torch.save(Evil(tmp_path / "ran"), last / name)
    settings = _settings(world, networks, tmp_path / "run")
    if name in ("optimizer.pt", "scheduler.pt"):
        with pytest.raises(
            TrainingError, match=rf"{last.name}: training cannot be resumed from it .*more than tensors"
        ):
            finetune(settings)
    else:
        finetune(settings)  # finished: no more random numbers are drawn, and nothing reads these arguments
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", None], ids=["empty", "foreign", "truncated"])
def test_a_truncated_or_foreign_state_raises_a_single_line_error(
    world: World, networks: Path, finished_run: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    for saved in (tmp_path / "run" / "training").glob("checkpoint-*"):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(
        TrainingError, match=r"checkpoint-\d+: training cannot be resumed from it .*--overwrite true"
    ) as found:
        finetune(_settings(world, networks, tmp_path / "run"))
    assert "\n" not in str(found.value)


def test_a_moved_state_with_a_long_history_and_nan_gradients_is_accepted(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoint-2"
    saved.mkdir()
    save_file({"a": torch.zeros(1)}, saved / "model.safetensors")
    history = [{"grad_norm": float("nan"), "loss": float("inf"), "note": "x" * 99} for _ in range(20_000)]
    state = {"log_history": history, "best_model_checkpoint": "/gone/checkpoint-1"}
    (saved / "trainer_state.json").write_text(json.dumps(state))
    assert (saved / "trainer_state.json").stat().st_size > 2**21
    speech._check_saved(saved)
    speech._bring_along(saved)
    found = json.loads((saved / "trainer_state.json").read_text())
    assert found["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")
    assert math.isnan(found["log_history"][-1]["grad_norm"]) and found["log_history"][-1]["loss"] == math.inf


def test_a_moved_run_keeps_its_metrics_and_a_damaged_run_can_be_overwritten(
    world: World, networks: Path, finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = typed(read_json(finished_run / "run.json"), Result)
    settings = _settings(world, networks, tmp_path / "run")
    assert finetune(settings).metrics == before.metrics
    for saved in (tmp_path / "run" / "training").glob("checkpoint-*"):
        state = read_json(saved / "trainer_state.json")
        (saved / "trainer_state.json").write_text("[]")
    assert Path(state["best_model_checkpoint"]).parent in (tmp_path / "run" / "training", finished_run / "training")
    assert finetune(replace(settings, overwrite=True)).metrics == before.metrics


def test_two_runs_cannot_write_to_the_same_folder(world: World, networks: Path, tmp_path: Path) -> None:
    with held(tmp_path / "run" / ".lock"), pytest.raises(TrainingError, match="another run writes there"):
        finetune(_settings(world, networks, tmp_path / "run"))


def test_a_folder_of_a_run_with_other_settings_or_index_is_refused(
    world: World, networks: Path, tmp_path: Path
) -> None:
    settings = _settings(world, networks, tmp_path, epochs=1)
    finetune(settings)
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(replace(settings, learning_rate=1e-4))
    index, _spec = read_index(world.images)
    shutil.copytree(world.images, tmp_path / "fewer")
    index[index["clip_id"] != index["clip_id"].iloc[0]].to_parquet(tmp_path / "fewer" / "index.parquet")
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        finetune(replace(settings, index=tmp_path / "fewer"))


def test_unavailable_networks_layers_and_packages_raise_an_error(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="is neither a folder nor a name on the hub"):
        load(str(tmp_path / "there" / "is" / "none"), "AutoModel")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load(str(tmp_path / "empty"), "AutoModel")
    with pytest.raises(FeatureError, match="has layers 0 to 2, but layer is 9"):
        speech.embed(voice(), RATE, str(networks / "Hubert"), 9)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(FeatureError, match=r"pip install 'spectro\[speech\]'"):
        load(str(networks / "Hubert"), "AutoModel")


def test_an_uncached_network_raises_an_error_when_the_hub_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match=r"spectro-has-no/such-network: the network cannot be loaded .*name a folder that holds one"
    ):
        load("spectro-has-no/such-network", "AutoModel")
