import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from spectro.cli import main
from spectro.engines import base, choose, export
from spectro.engines.base import Scores
from spectro.engines.onnx import OnnxEngine
from spectro.engines.pytorch import TorchEngine
from spectro.engines.registry import FOR_EXPORTS
from spectro.errors import CheckpointError, PredictionError
from spectro.files import held
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet
from spectro.model.checkpoint import Checkpoint
from spectro.model.metadata import EXPORT_FILE, identity
from spectro.outputs import lock_of
from spectro.picture import png
from spectro.picture.spec import Image
from spectro.predict.explain import explain
from spectro.predict.predictor import Predictor
from tests.conftest import SMALL, World, WriteWav

ENGINES = [("onnx", "onnxruntime"), ("openvino", "openvino")]


def pictures(count: int) -> list[Image]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *SMALL.shape), dtype=np.uint8))


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world's checkpoint, exported by the command."""
    out = tmp_path_factory.mktemp("exported") / "net"
    arguments = ["--checkpoint", str(world.checkpoint), "--out", str(out), "--index", str(world.images)]
    assert main(["export", *arguments, "--pictures", "20"]) == 0
    return out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPECTRO_ENGINE")
    monkeypatch.setattr(choose, "_has_gpu", lambda: False)
    return tmp_path / "cache/spectro"


def test_engine_names_list_every_engine() -> None:
    assert get_args(base.EngineName) == ("auto", TorchEngine.key, *FOR_EXPORTS)
    assert [(key, engine.package) for key, engine in FOR_EXPORTS.items()] == ENGINES


@pytest.mark.parametrize(("engine", "package"), ENGINES)
def test_an_export_gives_the_same_probabilities_and_embeddings(
    world: World, exported: Path, engine: base.EngineName, package: str
) -> None:
    expected = Predictor(world.trained)
    found = Predictor(exported, engine=engine)
    assert found.engine.name.startswith(f"{package} ") and found.engine.name.endswith(", float32")
    assert found.labels == world.trained.about.labels
    for count in (1, 3, 40, 2):
        ours, theirs = expected.scores(pictures(count)), found.scores(pictures(count))
        np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=export.TOLERANCE)
        np.testing.assert_allclose(theirs.embeddings, ours.embeddings, atol=1e-3)
        assert theirs.probabilities.dtype == np.float64 and theirs.embeddings.dtype == np.float32
    assert found.scores([]).probabilities.shape == (0, len(found.labels))


def test_an_export_records_how_it_was_compared_with_its_checkpoint(world: World, exported: Path) -> None:
    said = json.loads((exported / "spectro.json").read_text())["export"]
    assert said["of"] == identity(world.checkpoint) != identity(exported)
    assert len(said["compared"]) == len(ENGINES)
    for figures in said["compared"].values():
        assert figures["pictures"] == 20 and figures["agreement"] == 1 and figures["difference"] <= export.TOLERANCE
    assert (exported / "model.xml").exists() and not (exported / "model.safetensors").exists()


def test_export_refuses_a_locked_folder_and_a_folder_that_is_not_an_export(world: World, tmp_path: Path) -> None:
    out = tmp_path / "net"
    with held(lock_of(out)), pytest.raises(PredictionError, match="net: another run writes there; wait, or name"):
        export.export(world.checkpoint, out, pictures(1))
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(PredictionError, match="net: already exists, and is not an export; choose another --out"):
        export.export(world.checkpoint, out, pictures(1))
    assert (out / "mine").exists()


def test_the_old_export_is_restored_after_a_killed_run(
    exported: Path,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "net"
    shutil.copytree(exported, tmp_path / ".net.before")  # as left by a run that was killed while it moved folders
    monkeypatch.setattr(export, "_write_onnx", fail)
    with pytest.raises(KeyboardInterrupt):
        export.export(world.checkpoint, out, pictures(1))
    assert {path.name for path in out.iterdir()} == {path.name for path in exported.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"net", ".net.lock"}


def test_an_export_whose_outputs_differ_raises_an_error_and_is_not_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxEngine):
        def scores(self, some: base.Pictures) -> Scores:
            found = super().scores(some)
            return Scores(found.probabilities + 2e-2, found.embeddings)

    monkeypatch.setitem(FOR_EXPORTS, "onnx", Wrong)
    with pytest.raises(export.ExportError, match=r"differ by 2\.0e-02 between torch and onnxruntime"):
        export.export(world.checkpoint, tmp_path / "out", pictures(3))
    assert list(tmp_path.iterdir()) == [lock_of(tmp_path / "out")]


@pytest.mark.parametrize(
    "backbone",
    ["cnn1d", pytest.param("lstm", marks=pytest.mark.slow), pytest.param("resnet10t", marks=pytest.mark.slow)],
)
def test_other_backbones_can_be_exported(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(0)
    net = SpectrogramNet(backbone, 3, hidden=8).eval()
    checkpoints.save(Checkpoint.of(net=net, labels=("a", "b", "c"), spec=SMALL, temperature=1.5), tmp_path / "net")
    found = export.export(tmp_path / "net", tmp_path / "out", pictures(5))
    assert all(figures["agreement"] == 1 for figures in found.values())


def test_auto_uses_the_fastest_engine_and_exports_once(
    world: World, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="spectro"):
        first = Predictor(world.checkpoint)
    assert first.engine.name.startswith("onnxruntime")
    assert "exporting" in caplog.text
    caplog.clear()
    (kept,) = cache.iterdir()
    assert not (kept / "model.xml").exists()
    before = (kept / EXPORT_FILE).stat().st_mtime_ns
    again = Predictor(world.checkpoint, precision="bfloat16")
    assert again.engine.name.startswith("openvino")
    assert (kept / EXPORT_FILE).stat().st_mtime_ns == before and not caplog.text
    ours = Predictor(world.checkpoint, engine="torch").scores(pictures(2)).probabilities
    np.testing.assert_allclose(first.scores(pictures(2)).probabilities, ours, atol=export.TOLERANCE)
    np.testing.assert_allclose(again.scores(pictures(2)).probabilities, ours, atol=0.05)


def test_auto_uses_torch_if_the_network_cannot_be_exported(
    world: World, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "EXPORTER", ("no_such_package",))
    assert Predictor(world.checkpoint).engine.name.startswith("torch")
    assert "no_such_package" in caplog.text
    with pytest.raises(PredictionError, match=r"install spectro\[onnx\]"):
        Predictor(world.checkpoint, engine="onnx")


def test_an_environment_variable_sets_the_default_engine(
    world: World, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRO_ENGINE", "onnx")
    assert Predictor(exported).engine.name.startswith("onnxruntime")
    assert Predictor(exported, engine="openvino").engine.name.startswith("openvino")
    monkeypatch.setenv("SPECTRO_ENGINE", "fast")
    with pytest.raises(PredictionError, match="no engine 'fast'"):
        Predictor(exported)


def test_unsupported_engine_settings_raise_an_error(
    world: World, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PredictionError, match="computes on the CPU, not on 'cuda'"):
        Predictor(exported, engine="openvino", device="cuda")
    with pytest.raises(PredictionError, match="onnx computes in float32"):
        Predictor(exported, engine="onnx", precision="bfloat16")
    with pytest.raises(PredictionError, match="computes only checkpoints in a folder"):
        Predictor(world.trained, engine="onnx")
    with pytest.raises(CheckpointError, match="holds an exported network"):
        Predictor(exported, engine="torch")
    monkeypatch.setattr(OnnxEngine, "package", "no_such_package")
    with pytest.raises(PredictionError, match=r"needs no_such_package: install spectro\[onnx\]"):
        Predictor(exported, engine="onnx")


def test_python_signal_handlers_work_after_openvino_engines_are_deleted(exported: Path) -> None:
    program = """
import gc, pathlib, signal, subprocess, sys
from spectro.engines.openvino import OpenVinoEngine
signal.signal(signal.SIGCHLD, lambda *_: None)
first, second, third = (OpenVinoEngine(pathlib.Path(sys.argv[1])) for _ in range(3))
del first; gc.collect(); del second; gc.collect(); del third; gc.collect()
for _ in range(3):
    subprocess.run(["true"], check=True)
"""
    subprocess.run([sys.executable, "-c", program, str(exported)], check=True)


def test_bfloat16_probabilities_are_close_to_those_of_float32(
    world: World, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CLOSE_CALL", 0.0)
    shown = [png.read(path, SMALL).pixels for path in sorted((world.images / "images").glob("*_0.png"))[:8]]
    exact = Predictor(world.checkpoint, engine="torch").scores(shown).probabilities
    rough = Predictor(world.checkpoint, engine="torch", precision="bfloat16")
    assert rough.engine.name.endswith("bfloat16")
    found = rough.scores(shown).probabilities
    np.testing.assert_allclose(found, exact, atol=0.15)
    assert np.abs(found - exact).max() > 1e-5  # or it was not computed in bfloat16
    fast = Predictor(exported, engine="openvino", precision="bfloat16")  # float32 if the CPU has no bfloat16
    np.testing.assert_allclose(fast.scores(shown).probabilities, exact, atol=0.15)


def test_close_calls_and_nan_scores_are_recomputed_exactly() -> None:
    probabilities = np.array([[0.5, 0.31, 0.19], [0.1, 0.3, 0.6], [0.2, 0.39, 0.41]])
    asked: list[list[int]] = []

    def exact(some: npt.NDArray[np.uint8]) -> Scores:
        asked.append(some[:, 0, 0, 0].tolist())
        return Scores(np.tile([0.0, 1.0, 0.0], (len(some), 1)), np.full((len(some), 2), 7, np.float32))

    def rough(some: npt.NDArray[np.uint8]) -> Scores:
        return Scores(probabilities[some[:, 0, 0, 0]], np.zeros((len(some), 2), np.float32))

    some = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    found = base.settle(some, exact, rough)
    assert asked == [[0, 2]]
    assert found.probabilities.tolist() == [[0, 1, 0], probabilities[1].tolist(), [0, 1, 0]]
    assert found.embeddings[:, 0].tolist() == [7, 0, 7]
    assert base.settle(some[1:2], exact, rough).probabilities.tolist() == [probabilities[1].tolist()]
    assert len(asked) == 1

    probabilities[1] = np.nan
    assert base.settle(some[1:2], exact, rough).probabilities.tolist() == [[0, 1, 0]]
    probabilities = np.ones((3, 1))
    assert base.settle(some, exact, rough).probabilities.tolist() == [[1], [1], [1]]


def test_an_explanation_needs_the_checkpoint(world: World, exported: Path, cache: Path, wav: WriteWav) -> None:
    clip = wav()
    fast = Predictor(world.checkpoint, engine="onnx")
    ours, theirs = explain(Predictor(world.trained), clip), explain(fast, clip)
    np.testing.assert_allclose(theirs.heat, ours.heat, atol=1e-5)
    with pytest.raises(CheckpointError, match="name the checkpoint that it was exported from"):
        explain(Predictor(exported, engine="onnx"), clip)


@pytest.mark.parametrize("name", ["letter.txt", "model.onnx"])
def test_export_does_not_overwrite_other_files(world: World, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("dear")
    arguments = ["--checkpoint", str(world.checkpoint), "--out", str(tmp_path / "mine")]
    assert main(["export", *arguments]) == 2
    assert (tmp_path / "mine" / name).read_text() == "dear"


def test_an_export_is_replaced_unless_replace_is_false(exported: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out/card.md").write_text("of before")
    export.export(world.checkpoint, tmp_path / "out", pictures(2), ir=False, replace=False)
    assert (tmp_path / "out/card.md").read_text() == "of before"
    export.export(world.checkpoint, tmp_path / "out", pictures(2), ir=False)
    assert (tmp_path / "out/card.md").read_text() == (world.checkpoint / "card.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_weights_take_precedence_over_an_export_in_the_same_folder(
    world: World, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(world.checkpoint, tmp_path / "net", ignore=shutil.ignore_patterns("training"))
    before = identity(tmp_path / "net")
    (tmp_path / "net/model.onnx").write_bytes(b"of another network")
    assert identity(tmp_path / "net") == before
    assert Predictor(tmp_path / "net").engine.name.startswith("torch")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_damaged_export_is_refused(exported: Path, tmp_path: Path, engine: base.EngineName) -> None:
    shutil.copytree(exported, tmp_path / "net", ignore=shutil.ignore_patterns("model.xml", "model.bin"))
    (tmp_path / "net/model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf"net: cannot be computed with {engine} \(.*; export it again"):
        Predictor(tmp_path / "net", engine=engine)


def test_predict_with_an_export_does_not_import_torch(exported: Path, world: World, tmp_path: Path) -> None:
    """With an export, the command does not wait for PyTorch to start: it is not even imported."""
    program = (
        "import sys; from spectro.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'timm', 'pandas', 'librosa', 'sklearn', 'matplotlib', 'pyarrow'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    for engine in ("onnx", "openvino"):
        out = tmp_path / f"{engine}.csv"
        arguments = [str(world.corpus), "--checkpoint", str(exported), "--out", str(out), "--engine", engine]
        subprocess.run([sys.executable, "-c", program, "predict", *arguments], check=True, env=os.environ)
        found = pd.read_csv(out)
        rows = list(Predictor(world.trained).predict_folder(world.corpus))
        assert list(found["label"]) == [row.label for row in rows]


def test_an_export_without_pictures_to_compare_raises_an_error(world: World, tmp_path: Path) -> None:
    with pytest.raises(export.ExportError, match="there is no picture to compare an export on: give at least one"):
        export.export(world.checkpoint, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
