"""An engine's output is finite and from its own checkpoint, in any process; its input is checked."""

import copy
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spectro.cli import main
from spectro.engines import base, choose, export
from spectro.engines import cache as cache_of
from spectro.engines.base import Scores
from spectro.engines.forks import FORKS
from spectro.engines.onnx import OnnxEngine
from spectro.engines.registry import FOR_EXPORTS
from spectro.errors import CheckpointError, EvaluationError, ExportError, ImageError, PredictionError
from spectro.evaluate.evaluate import adapted_probabilities
from spectro.model import checkpoint as checkpoints
from spectro.model.checkpoint import Checkpoint
from spectro.model.metadata import EXPORT_FILE
from spectro.predict.predictor import Predictor
from tests.conftest import SMALL, World, WriteWav


def pictures(count: int) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *SMALL.shape), dtype=np.uint8))


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "net"
    export.export(world.checkpoint, out, pictures(2), ir=False)
    return out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPECTRO_ENGINE", raising=False)
    monkeypatch.setattr(choose, "_has_gpu", lambda: False)
    return tmp_path / "cache/spectro"


@pytest.fixture
def exported_checkpoints(exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copy an existing export instead of making one, which takes a minute; the list holds the exported checkpoints."""
    made: list[Path] = []

    def instead(folder: Path, out: Path, *_: Any, **__: Any) -> dict[str, Any]:
        made.append(folder)
        shutil.copytree(exported, out)
        return {}

    monkeypatch.setattr(export, "export", instead)
    return made


def overwrite_weight(folder: Path, value: float, name: str = "head.1.weight") -> None:
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[0] = value
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["head.1.weight", "backbone.conv_stem.weight"])
def test_non_finite_weights_raise_an_error_at_loading(
    world: World, tmp_path: Path, wav: WriteWav, value: float, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(world.trained, tmp_path / "net")
    overwrite_weight(tmp_path / "net", value, name)
    with pytest.raises(CheckpointError, match=rf"net: 1 of its weights .* not finite .* such as {name}; .* train it"):
        Predictor(tmp_path / "net")
    arguments = ["predict", str(wav()), "--checkpoint", str(tmp_path / "net"), "--out", str(tmp_path / "rows.jsonl")]
    assert main(arguments) == 2
    assert "not finite" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="not finite"):
        export.export(tmp_path / "net", tmp_path / "out", pictures(1), ir=False)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("output", [0, 1])
def test_an_export_with_non_finite_outputs_raises_an_error_at_loading(
    exported: Path, tmp_path: Path, engine: base.EngineName, output: int
) -> None:
    import onnx
    from onnx import helper, numpy_helper

    shutil.copytree(exported, tmp_path / "net")
    model = onnx.load(exported / EXPORT_FILE)
    name = model.graph.output[output].name
    for node in model.graph.node:
        node.output[:] = [f"{one}_before" if one == name else one for one in node.output]
        node.input[:] = [f"{one}_before" if one == name else one for one in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nothing"))
    model.graph.node.append(helper.make_node("Add", [f"{name}_before", "nothing"], [name]))
    onnx.save(model, tmp_path / "net" / EXPORT_FILE)
    with pytest.raises(CheckpointError, match=r"net: its network outputs values that are not finite"):
        Predictor(tmp_path / "net", engine=engine)


def test_an_export_with_a_wrong_number_of_labels_raises_an_error_at_loading(
    world: World, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "net")
    text = (exported / "spectro.json").read_text()
    (tmp_path / "net/spectro.json").write_text(text.replace('    "calm",\n', "", 1))
    with pytest.raises(CheckpointError, match=r"probabilities of shape \(1, 6\) for a picture and 5 labels"):
        Predictor(tmp_path / "net", engine="onnx")


def test_a_network_that_cannot_read_its_own_spec_raises_an_error_at_loading(world: World) -> None:
    class Picky(torch.nn.Module):
        def forward(self, _pictures: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("too small\nby far")

    checkpoint = Checkpoint.of(net=copy.deepcopy(world.trained.net), labels=world.trained.about.labels, spec=SMALL)
    checkpoint.net.backbone = Picky()
    with pytest.raises(CheckpointError, match=r"cannot read pictures of its own spec \(too small\)"):
        Predictor(checkpoint)


def test_a_network_with_non_finite_outputs_raises_an_error_at_loading(world: World) -> None:
    checkpoint = Checkpoint.of(net=copy.deepcopy(world.trained.net), labels=world.trained.about.labels, spec=SMALL)
    checkpoint.net.head[1].weight.data.fill_(torch.inf)
    with pytest.raises(CheckpointError, match="test_efficientnet: its network outputs values that are not finite"):
        Predictor(checkpoint)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_weight_set_to_nan_after_loading_raises_an_error_at_prediction(
    world: World, tmp_path: Path, precision: base.Precision
) -> None:
    checkpoints.save(world.trained, tmp_path / "net")
    predictor = Predictor(tmp_path / "net", engine="torch", precision=precision)
    weight = predictor.torch_engine.net.head[1].weight
    with torch.no_grad():
        weight[0, 0] = torch.nan
    for what in (predictor.scores, predictor.predict_pixels):
        with pytest.raises(CheckpointError, match="not finite"):
            what(pictures(3))


@pytest.mark.parametrize("part", ["probabilities", "embeddings"])
def test_non_finite_probabilities_or_embeddings_raise_an_error(part: str) -> None:
    good = {"probabilities": np.full((2, 3), 1 / 3), "embeddings": np.zeros((2, 4), np.float32)}
    assert base.finite(Scores(**good), "net").probabilities is good["probabilities"]
    for value in (np.nan, np.inf):
        bad = {name: one.copy() for name, one in good.items()}
        bad[part][1, 2] = value
        with pytest.raises(CheckpointError, match=r"^net: "):
            base.finite(Scores(**bad), "net")


def test_embeddings_that_overflow_bfloat16_are_recomputed_exactly() -> None:
    clear = np.array([[0.9, 0.1]])
    rough = Scores(clear.copy(), np.array([[np.inf]], np.float32))
    exact = Scores(clear, np.ones((1, 1), np.float32))
    found = base.settle(np.zeros((1, 1, 1, 1), np.uint8), lambda _: exact, lambda _: rough)
    assert found.embeddings.tolist() == [[1]]


@pytest.mark.parametrize("first", [True, False])
def test_nan_scores_fail_the_comparison_of_an_export(
    world: World, exported: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    class Wrong(OnnxEngine):
        def scores(self, some: base.Pictures) -> Scores:
            found = super().scores(some)
            if (len(some) == 1) is not first:
                found.probabilities[0] = np.nan
            return found

    monkeypatch.setitem(FOR_EXPORTS, "onnx", Wrong)
    with pytest.raises(ExportError, match="differ by nan between torch and onnxruntime"):
        export._compare(world.trained, exported, pictures(export.BATCH + 1))


def test_non_finite_adaptation_raises_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(world.trained)
    paths = sorted((world.images / "images").glob("*_0.png"))[:2]
    monkeypatch.setattr(
        "spectro.model.batch_norms.adapt_to_voice", lambda net, _given: net.head[1].weight.data.fill_(np.nan)
    )
    with pytest.raises(EvaluationError, match="not finite"):
        adapted_probabilities(predictor, paths, np.array(["1", "1"]), 2)


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_pictures_of_another_dtype_or_shape_raise_an_error_that_names_it(
    world: World, exported: Path, engine: base.EngineName
) -> None:
    predictor = Predictor(world.checkpoint if engine == "torch" else exported, engine=engine)
    good = pictures(1)[0]
    for bad, told in (
        (good / 255, "float64 (40, 80)"),
        (good.astype(np.int64), "int64 (40, 80)"),
        (good[:39], "uint8 (39, 80)"),
        (np.stack([good] * 3, axis=-1), "uint8 (40, 80, 3)"),
        (good.tolist(), "a list"),
    ):
        with pytest.raises(ImageError) as found:
            predictor.predict_pixels([good, bad])
        assert f"picture 1 is {told}; this checkpoint reads arrays of uint8 (40, 80)" in str(found.value)
    assert len(predictor.predict_pixels(np.stack([good, good]))) == 2


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_raises_an_error(world: World, wav: WriteWav, batch_size: int) -> None:
    predictor = Predictor(world.trained)
    with pytest.raises(PredictionError, match=f"batch_size is {batch_size}; at least 1"):
        predictor.predict_folder(wav(), batch_size=batch_size)
    with pytest.raises(PredictionError, match=f"batch_size is {batch_size}; at least 1"):
        list(all_rows(predictor, wav(), batch_size))


def all_rows(predictor: Predictor, path: Path, batch_size: int) -> Any:
    from spectro.predict.batches import predict_rows
    from spectro.predict.timeline.segments import timeline

    return [*timeline(predictor, path, batch_size=batch_size), *predict_rows(predictor, [path], batch_size=batch_size)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_a_forked_process_predicts_the_same(world: World, exported: Path, engine: str) -> None:
    program = """
import multiprocessing, sys
import numpy as np
from spectro.errors import PredictionError
from spectro.predict.predictor import Predictor

def answer(pipe, predictor, folder, engine, some):
    found = predictor.predict_pixels(some)
    try:
        again = Predictor(folder, engine=engine).predict_pixels(some)
    except PredictionError as error:
        again = str(error)
    pipe.send((found, again, Predictor(folder).engine.name if engine == "torch" else ""))

if __name__ == "__main__":
    folder, engine = sys.argv[1:]
    predictor = Predictor(folder, engine=engine)
    some = list(np.random.default_rng(0).integers(0, 256, (20, *predictor.checkpoint.spec.shape), dtype=np.uint8))
    here = predictor.predict_pixels(some)
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=answer, args=(theirs, predictor, folder, engine, some))
    child.start()
    assert ours.poll(120), "the forked process hangs"
    there, again, _name = ours.recv()
    child.join(60)
    assert child.exitcode == 0, child.exitcode
    def near(one, other):
        return [a.label for a in one] == [b.label for b in other] and all(
            np.allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)
            for a, b in zip(one, other))
    assert near(here, there)
    assert near(here, again) if engine == "torch" else "cannot be started again" in again, again
"""
    folder = world.checkpoint if engine == "torch" else exported
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), engine],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_auto_uses_torch_if_a_fork_prevents_faster_engines_from_starting(
    world: World, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FORKS, "inherited", frozenset(FOR_EXPORTS))
    assert Predictor(world.checkpoint).engine.name.startswith("torch")


def test_a_damaged_export_in_the_cache_is_recreated(
    world: World, cache: Path, exported_checkpoints: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    kept = cache_of.kept(world.checkpoint)
    assert cache_of.kept(world.checkpoint) == kept and len(exported_checkpoints) == 1
    whole = (kept / EXPORT_FILE).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:1000], bytes(flipped), b""):
        (kept / EXPORT_FILE).write_bytes(damaged)
        caplog.clear()
        assert Predictor(world.checkpoint).engine.name.startswith("onnxruntime")
        assert (kept / EXPORT_FILE).read_bytes() == whole
        assert "is damaged; exporting it again" in caplog.text
    (kept / "spectro.json").write_text("{}")
    assert cache_of.kept(world.checkpoint) == kept
    assert len(exported_checkpoints) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="folders are made read-only otherwise there")
def test_auto_uses_torch_if_the_cache_is_not_writable(
    world: World, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file, where a folder should be made: as read-only as it gets, for root too")
    assert Predictor(world.checkpoint).engine.name.startswith("torch")
    told = capsys.readouterr().err
    assert "an export cannot be stored there" in told and "XDG_CACHE_HOME" in told and "PyTorch computes it" in told
    with pytest.raises(ExportError, match="set XDG_CACHE_HOME to a writable folder"):
        Predictor(world.checkpoint, engine="onnx")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without a home folder
    with pytest.raises(ExportError, match="there is no home folder"):
        Predictor(world.checkpoint, engine="onnx")


def test_old_leftovers_of_killed_exports_are_removed(
    world: World, cache: Path, exported_checkpoints: list[Path]
) -> None:
    kept = cache_of.kept(world.checkpoint)
    old, new = (cache / f".{kept.name}.{name}" for name in ("old", "new"))
    for left in (old, new):
        (left / "export").mkdir(parents=True)
    os.utime(old, (1, 1))
    assert stat.S_ISDIR(old.stat().st_mode)
    shutil.rmtree(kept)
    cache_of.kept(world.checkpoint)
    assert not old.exists() and new.exists()
