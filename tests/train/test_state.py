"""A state to resume from may come from anyone: it is read without executing anything, or refused in one sentence."""

import errno
import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import spectro
from spectro.errors import TrainingError
from spectro.files import held
from spectro.train import finetune as finetuning
from spectro.train import state as states
from spectro.train.curves import Curves
from spectro.train.finetune import finetune
from spectro.train.finish import fit_temperature, measure
from spectro.train.module import TrainingSettings
from spectro.train.state import PlainStateIO, plain, read_state
from spectro.train.trainer import make_trainer
from tests.conftest import World, finetune_settings

LAST, BEST = "training/last.ckpt", "training/best.ckpt"


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def finished_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it."""
    out = tmp_path_factory.mktemp("settled") / "run"
    finetune(finetune_settings(world.images, out))
    return out


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    for path in finished_run.rglob("*"):
        if path.is_file():
            (tmp_path / "run" / path.relative_to(finished_run)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / path.relative_to(finished_run)).write_bytes(path.read_bytes())
    return tmp_path / "run"


def zipped(compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/version", "3")
    return stream.getvalue()


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", [LAST, BEST])
@pytest.mark.parametrize("form", ["zip", "old", "pickle", "inside"])
def test_a_malicious_pickle_is_not_executed(world: World, run: Path, tmp_path: Path, name: str, form: str) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()
    mark.unlink()
    if form == "pickle":
        (run / name).write_bytes(pickle.dumps(Evil(mark)))
    else:
        content = Evil(mark) if form != "inside" else {**read_state(run / name), "loops": {"a": Evil(mark)}}
        torch.save(content, run / name, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(
        TrainingError, match=rf"{re.escape(name)}: training cannot be resumed from it .*--overwrite true"
    ) as found:
        finetune(finetune_settings(world.images, run))
    assert "\n" not in str(found.value)
    finetune(finetune_settings(world.images, run, overwrite=True))
    assert not mark.exists()
    assert read_state(run / name)["epoch"] in (0, 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", zipped(zipfile.ZIP_STORED), zipped(zipfile.ZIP_DEFLATED), saved([1]), saved({"epoch": 1}), None],
    ids=["empty", "text", "zip", "compressed-zip", "list", "other-keys", "truncated"],
)
@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_truncated_or_foreign_state_raises_a_single_line_error(
    world: World, run: Path, name: str, content: bytes | None
) -> None:
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(
        TrainingError, match=r"ckpt: training cannot be resumed from it \(.+\); delete .*training, and"
    ) as found:
        finetune(finetune_settings(world.images, run))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": {"net.head.1.weight": torch.zeros(3)}},
        {"optimizer_states": [{}]},
        {"lr_schedulers": [3]},
        {"loops": {}},
        {"callbacks": {"Curves": {"rows": [1]}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_state_of_another_network_raises_a_single_line_error(world: World, run: Path, change: dict[str, Any]) -> None:
    torch.save(read_state(run / LAST) | change, run / LAST)
    with pytest.raises(TrainingError, match=r"last\.ckpt: training cannot be resumed from it") as found:
        finetune(finetune_settings(world.images, run))
    assert "\n" not in str(found.value)


def test_a_best_epoch_of_another_network_is_refused(world: World, run: Path) -> None:
    torch.save(read_state(run / BEST) | {"state_dict": {"net.head.1.weight": torch.zeros(3)}}, run / BEST)
    with pytest.raises(TrainingError, match=r"best\.ckpt: training cannot be resumed from it"):
        finetune(finetune_settings(world.images, run))


def test_paths_in_a_state_are_redirected_to_the_run_folder(run: Path) -> None:
    state = read_state(run / LAST)
    for own in state["callbacks"].values():
        if "best_model_path" in own:
            own |= dict.fromkeys(("best_model_path", "last_model_path"), "/etc/passwd") | {"dirpath": "/etc"}
            own["best_k_models"] = {"/etc/shadow": 1.0}
    torch.save(state, run / LAST)
    told = json.dumps([own for own in read_state(run / LAST)["callbacks"].values() if "dirpath" in own], default=str)
    assert "/etc" not in told and f'"{run}/training/passwd"' in told


def test_the_package_does_not_enable_unpickling() -> None:
    package = Path(spectro.__file__).parent
    for path in {*package.rglob("*.py")} - {package / "cluster.py"}:  # Ray's processes exchange pickles
        assert not re.search(r"weights_only\s*=\s*False|pickle\.load|allow_pickle=True", path.read_text()), path


class Colour(Enum):
    RED = "red"


def test_saved_states_hold_only_tensors_and_plain_data(tmp_path: Path) -> None:
    given = {
        "numpy": np.float64(0.5),
        np.int32(3): np.arange(3),
        "path": tmp_path,
        "kind": Colour.RED,
        "nested": OrderedDict(one=[np.bool_(True), (np.float32(1.5),)]),
        "tensor": torch.ones(2),
    }
    states.PlainStateIO().save_checkpoint(given, tmp_path / "a.ckpt")
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert found["numpy"] == 0.5 and found["path"] == str(tmp_path) and found["kind"] == "red"
    assert found["nested"] == {"one": [True, (1.5,)]} and found[3].tolist() == [0, 1, 2]
    with pytest.raises(TrainingError, match="holds a Evil"):
        plain({"a": [Evil(tmp_path)]})


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"patience": 3, "monitor": "valid_loss"},
        {"precision": "bf16-mixed", "balance": "prior"},
        {"monitor": "last", "train": TrainingSettings(epochs=2, plan="gradual")},
        {"train_on": "valid", "balance": "loss"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_interrupted_runs_resume_to_equal_weights_under_various_settings(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    class Cut(Exception):
        pass

    whole = finetune(finetune_settings(world.images, tmp_path / "whole", **changes))
    original, out = PlainStateIO.save_checkpoint, tmp_path / "cut"

    def cut(self: PlainStateIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if checkpoint["epoch"] == 1:
            raise Cut
        original(self, checkpoint, path, storage_options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(PlainStateIO, "save_checkpoint", cut)
        finetune(finetune_settings(world.images, out, **changes))
    assert len(states.rows_of(read_state(out / LAST))) == 1
    resumed = finetune(finetune_settings(world.images, out, **changes))
    weights = [load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert resumed.about.temperature == whole.about.temperature


def test_a_full_disk_keeps_the_previous_epoch_and_names_the_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.save, []

    def full(content: Any, stream: Any) -> None:
        calls.append(content["epoch"])
        if content["epoch"] == 1:
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, stream)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"training/(best|last)\.ckpt: cannot be written \(.*No space.*make room"):
        finetune(finetune_settings(world.images, tmp_path / "run"))
    monkeypatch.undo()
    assert read_state(tmp_path / "run" / LAST)["epoch"] == read_state(tmp_path / "run" / BEST)["epoch"] == 0
    assert not list((tmp_path / "run").rglob("*.part"))


def test_only_temporary_files_of_killed_runs_are_removed(world: World, run: Path) -> None:
    ours = [run / ".model.safetensors.123.part", run / "training" / ".best.ckpt.45.part"]
    others = [run / "mine.part", run / ".notes.part", run / "training" / "events.123.part"]
    for path in (*ours, *others):
        path.write_bytes(b"half")
    finetune(finetune_settings(world.images, run))
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_only_the_first_process_takes_the_folder_lock(tmp_path: Path) -> None:
    with finetuning._alone(tmp_path, first=True):
        with held(tmp_path / ".lock") as free:
            assert not free
        with finetuning._alone(tmp_path, first=False):
            pass
        with pytest.raises(TrainingError, match="another run writes there"), finetuning._alone(tmp_path, first=True):
            pass
    with finetuning._alone(tmp_path, first=False), finetuning._alone(tmp_path, first=True):
        pass  # other processes do not check the lock


def test_a_non_finite_loss_stops_the_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectro.train.module.Classifier.loss", lambda _self, logits, _t: logits.sum() * torch.nan)
    with pytest.raises(TrainingError, match=r"loss of epoch 1 is nan: .*lower --train\.learning_rate"):
        finetune(finetune_settings(world.images, tmp_path / "run", train=TrainingSettings(epochs=2, mixup=0)))
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_metrics_and_temperature_refuse_non_finite_logits(value: float) -> None:
    logits, targets = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    logits[2, 1] = value
    for what in (measure, fit_temperature):
        with pytest.raises(TrainingError, match="not finite"):
            what(logits, targets)


def test_lightning_itself_cannot_unpickle_a_state(tmp_path: Path) -> None:
    """Under some schedulers it looks for states itself, and requests unpickling."""
    trainer = make_trainer(finetune_settings(tmp_path, tmp_path), tmp_path, Curves(tmp_path))
    torch.save(Evil(tmp_path / "ran"), tmp_path / "hpc_ckpt_1.ckpt")
    with pytest.raises(TrainingError, match="more than tensors and plain data"):
        trainer.strategy.load_checkpoint(tmp_path / "hpc_ckpt_1.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()
