import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from spectro.cli import run_verb
from spectro.engines.base import batch
from spectro.errors import PredictionError
from spectro.model.backbones import SpectrogramNet
from spectro.model.checkpoint import Checkpoint
from spectro.picture.frontend import band_of
from spectro.picture.spec import SpectrogramSpec
from spectro.picture.spectrogram import first_column
from spectro.predict.explain import explain, explain_picture, moved, plot
from spectro.predict.predictor import Predictor
from tests.conftest import RATE, SMALL, World, WriteWav, voice


@pytest.fixture(scope="module")
def predictor(world: World) -> Predictor:
    return Predictor(world.checkpoint, device="cpu")


def test_the_heat_map_equals_grad_cam(predictor: Predictor, wav: WriteWav) -> None:
    picture = predictor.render(wav())
    found = explain_picture(predictor, picture, label="calm")
    net, kept = predictor.torch_engine.net, []
    hook = net.backbone.bn2.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = net(predictor.torch_engine.tensor(batch([picture])).float())
    hook.remove()
    gradient = torch.autograd.grad(logits[0, predictor.labels.index("calm")], kept[0])[0]
    weighted = torch.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)).detach()
    wide = torch.nn.functional.interpolate(weighted, size=picture.shape, mode="bilinear")[0, 0]
    np.testing.assert_allclose(found.heat, wide / wide.max().clamp(min=1e-12), atol=1e-4)
    assert found.prediction == predictor.predict_pixels([picture])[0]
    assert found.label == "calm"


@pytest.mark.parametrize("backbone", ["mobilenet", "vgg19", "inceptionv3", "resnet10t", "convnext_atto"])
def test_convolutional_backbones_yield_normalised_heat_maps(backbone: str) -> None:
    spec = SpectrogramSpec(height=128, width=128)
    torch.manual_seed(0)
    net = SpectrogramNet(backbone, 3).eval()
    predictor = Predictor(Checkpoint.of(net=net, labels=("a", "b", "c"), spec=spec), device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, spec.shape).astype(np.uint8)
    found = explain_picture(predictor, picture, label="b")
    assert found.heat.shape == spec.shape
    assert found.heat.dtype == np.float32
    assert found.heat.min() >= 0
    assert found.heat.max() == pytest.approx(1, abs=1e-6) or not found.heat.any()
    assert found.heat.std() > 0 or not found.heat.any()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_heat_map_is_flipped_back_for_networks_that_flip_their_input() -> None:
    spec = SpectrogramSpec(height=128, width=128)
    torch.manual_seed(0)
    net = SpectrogramNet("mn04", 3).eval()
    predictor = Predictor(Checkpoint.of(net=net, labels=("a", "b", "c"), spec=spec), device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, spec.shape).astype(np.uint8)
    assert net.turned
    heats = [explain_picture(predictor, picture, label=label).heat for label in "abc"]
    net.turned = False
    turned = [explain_picture(predictor, picture[::-1], label=label).heat for label in "abc"]
    assert any(heat.any() for heat in heats)
    np.testing.assert_allclose([heat[::-1] for heat in heats], turned, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mixer_s32_224", "swin_tiny_patch4_window7_224"])
def test_a_backbone_without_a_time_frequency_map_raises_an_error(backbone: str) -> None:
    net = SpectrogramNet(backbone, 2).eval()
    spec = SpectrogramSpec(height=224, width=224, n_fft=2048)
    predictor = Predictor(Checkpoint.of(net=net, labels=("a", "b"), spec=spec), device="cpu")
    with pytest.raises(PredictionError, match="has no map of time and frequency"):
        explain_picture(predictor, np.zeros(spec.shape, np.uint8))


def test_explanation_times_match_the_recording(predictor: Predictor, wav: WriteWav) -> None:
    burst = np.zeros(6 * RATE, np.float32)
    burst[round(3.2 * RATE) : round(3.3 * RATE)] = 0.5 * np.sin(np.arange(round(0.1 * RATE)) * 2 * np.pi * 440 / RATE)
    burst[round(3.9 * RATE) : round(4.0 * RATE)] = burst[round(3.2 * RATE) : round(3.3 * RATE)]
    found = explain(predictor, wav(samples=burst))
    step = SMALL.hop_length / RATE
    loud = np.flatnonzero(found.picture.max(axis=0) > 200) * step + found.start_s
    assert loud.min() == pytest.approx(3.2, abs=0.03)
    assert loud.max() == pytest.approx(4.0, abs=0.03)
    assert moved(found, 10.0).start_s == pytest.approx(found.start_s + 10)


def test_the_first_column_is_the_clip_start_unless_a_short_clip_is_centred() -> None:
    length = SMALL.width * SMALL.hop_length
    assert first_column(0, length - 1, SMALL) == 0
    assert first_column(500, 500 + length - 1, SMALL) == 500
    assert first_column(0, SMALL.hop_length * 9, SMALL) == -35 * SMALL.hop_length  # 10 frames in the middle of 80


def test_a_frequency_maps_to_the_mel_band_with_the_strongest_response() -> None:
    spec = SpectrogramSpec()
    filters = spec.mel_filters
    for frequency in (250, 500, 1000, 2000, 4000):
        loudest = filters[:, round(frequency / spec.sample_rate * spec.n_fft)].argmax()
        assert band_of(frequency, spec) == pytest.approx(loudest, abs=0.75)


def test_concurrent_explanations_and_predictions_do_not_interfere(predictor: Predictor, wav: WriteWav) -> None:
    picture = predictor.render(wav())
    heat, probabilities = explain_picture(predictor, picture).heat, predictor.scores([picture]).probabilities
    with ThreadPoolExecutor(3) as threads:
        scored = [threads.submit(predictor.scores, [picture]) for _ in range(150)]
        explained = [threads.submit(explain_picture, predictor, picture) for _ in range(40)]
        scored += [threads.submit(predictor.scores, [picture]) for _ in range(150)]
        for one in explained:
            np.testing.assert_allclose(one.result().heat, heat, atol=1e-5)
        for score in scored:
            np.testing.assert_allclose(score.result().probabilities, probabilities, atol=1e-6)


def test_the_plot_is_a_colour_image_of_900_by_432_pixels(predictor: Predictor, wav: WriteWav) -> None:
    found = explain(predictor, wav())
    plain = np.asarray(PIL.Image.open(io.BytesIO(plot(found, title="a_b$c$.wav"))).convert("RGB"))
    assert plain.shape == (432, 900, 3)
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) > 500


def test_explain_writes_png_and_npy_files_and_never_overwrites_an_input(
    world: World, wav: WriteWav, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav("clips/a.wav")
    wav("clips/deep/b.wav", voice(1.5))
    (tmp_path / "clips/c.wav").write_text("text")
    picture = next((world.images / "images").glob("*_0.png"))
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(world.checkpoint), "--out", str(out), "--device", "cpu"]
    assert run_verb("explain", [str(tmp_path / "clips"), *arguments]) == 1
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("[!.]*.*")) == [
        "a.npy",
        "a.png",
        "deep/b.npy",
        "deep/b.png",
    ]
    heat = np.load(out / "a.npy")
    assert heat.shape == (SMALL.height, SMALL.width)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert "c.wav: is not a recording" in capsys.readouterr().err
    assert run_verb("explain", [str(picture), *arguments]) == 0
    there = [str(picture), "--checkpoint", str(world.checkpoint), "--out", str(picture.parent), "--device", "cpu"]
    before = picture.read_bytes()
    assert run_verb("explain", there) == 2
    assert "is an input, and would be overwritten; choose another --out" in capsys.readouterr().err
    assert picture.read_bytes() == before and not (picture.parent / ".spectro").exists()
    assert run_verb("explain", [str(picture), *arguments, "--label", "bored"]) == 2
    assert "there is no label 'bored'" in capsys.readouterr().err


def test_a_recording_and_its_rendered_picture_have_the_same_heat_map(world: World, predictor: Predictor) -> None:
    from spectro.rendering.index import read_index

    row = read_index(world.images)[0].query("copy == 0").iloc[0]
    one, other = explain(predictor, row["path"]), explain(predictor, world.images / row["image"])
    np.testing.assert_allclose(one.heat, other.heat, atol=1e-5)
