from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from spectro.errors import PredictionError, WeightsError
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet, layers, load_weights, trainable
from spectro.model.sequence import BANDS, NAMES, Frames, cosine_transform
from spectro.picture.spec import SpectrogramSpec
from spectro.picture.spectrogram import render
from spectro.predict.explain import explain
from spectro.predict.predictor import Predictor
from spectro.train.finetune import finetune
from tests.conftest import World, WriteWav, finetune_settings, voice


def _pictures(height: int = 128, width: int = 224) -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_cosine_transform_of_a_picture_matches_librosa_mfcc() -> None:
    """Gray values are linear in dB, so their cosine transform is linear in librosa's MFCC of the same frames."""
    spec = SpectrogramSpec()
    picture = render(voice(seconds=spec.duration_s), spec).astype(np.float64)
    reference = librosa.feature.mfcc(S=picture[::-1], n_mfcc=40)
    ours = cosine_transform(spec.height, 40).numpy() @ picture[::-1]
    np.testing.assert_allclose(ours, reference, atol=0.05 * np.abs(reference).std())


def test_frames_start_with_the_lowest_band() -> None:
    low, high = torch.zeros(2, 1, 3, 128, 10)
    low[:, :, -1], high[:, :, 0] = 1.0, 1.0
    frames = Frames("logmel").eval()
    for picture, band in ((low, 0), (high, BANDS - 1)):
        course = frames(picture)[0, :, 0]
        assert course.argmax() == band


def test_coefficients_beyond_the_number_of_bands_are_zero() -> None:
    basis = cosine_transform(20, 40).numpy()
    np.testing.assert_allclose(basis[:20] @ basis[:20].T, np.eye(20), atol=1e-5)
    assert not basis[20:].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(128, 224), (40, 61)])
def test_networks_accept_any_picture_size_and_train_all_parameters(name: str, height: int, width: int) -> None:
    net = SpectrogramNet(name, 5, hidden=16)
    logits = net(_pictures(height, width))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert sum(map(len, layers(net))) == len(list(net.parameters()))
    assert set(layers(net)[-1]) < trainable(net, "last-block") < trainable(net, "all")


def test_auto_weights_of_an_unpublished_network_raise_an_error() -> None:
    with pytest.raises(WeightsError, match=r"there are no published weights for lstm.*--weights none"):
        load_weights(SpectrogramNet("lstm", 3), "auto", SpectrogramSpec())


def test_a_1d_cnn_can_be_trained_saved_and_used_for_prediction(world: World, tmp_path: Path, wav: WriteWav) -> None:
    settings = finetune_settings(world.images, tmp_path / "cnn1d", backbone="cnn1d", hidden=16, mask=False)
    trained = finetune(settings)
    assert trained.about.metrics["test"].clips > 0
    kept = checkpoints.load(tmp_path / "cnn1d")
    pictures = _pictures(40, 80)
    torch.testing.assert_close(kept.net(pictures), trained.net.eval()(pictures))
    predictor = Predictor(tmp_path / "cnn1d")
    assert predictor.predict_wav(wav()).label in kept.about.labels
    with pytest.raises(PredictionError, match="cnn1d has no map of time and frequency"):
        explain(predictor, wav())
