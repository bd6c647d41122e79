"""Pictures match the input of pretrained networks: each front end against an independent reference."""

from dataclasses import replace

import librosa
import numpy as np
import pytest
import scipy.signal

from spectro.errors import SpecError
from spectro.picture.frontend import band_of, log_mel
from spectro.picture.spec import SpectrogramSpec
from spectro.picture.spectrogram import render
from tests.conftest import voice

EFFICIENTAT = SpectrogramSpec(
    sample_rate=32_000,
    n_fft=1024,
    win_length=800,
    hop_length=320,
    height=128,
    width=288,
    fmin=0.0,
    fmax=15_000.0,
    preemphasis=0.97,
    window="hann_symmetric",
    mel="kaldi",
    log_offset=1e-5,
    scale="full_scale",
    low=-50.0,
    high=30.0,
)
YAMNET = SpectrogramSpec(
    n_fft=512,
    win_length=400,
    hop_length=160,
    height=64,
    width=288,
    fmin=125.0,
    fmax=7_500.0,
    spectrum="magnitude",
    mel="kaldi",
    log_offset=0.001,
    scale="full_scale",
    low=-30.0,
    high=20.0,
)
WHISPER = SpectrogramSpec(
    n_fft=400,
    win_length=400,
    hop_length=160,
    height=80,
    width=300,
    fmin=0.0,
    fmax=8_000.0,
    range_db=80.0,
    scale="full_scale",
    low=-100.0,
    high=20.0,
)


def speech(rate: int) -> np.ndarray:
    noise = 0.003 * np.random.default_rng(0).standard_normal(2 * rate)
    return (voice(2.0, rate) + noise).astype(np.float32)


def kaldi_filters(spec: SpectrogramSpec) -> np.ndarray:
    """Kaldi's definition, filter by filter: 1 - |m - centre| / distance of the centres, at the mel m of a bin."""
    low, high = (1127 * np.log(1 + edge / 700) for edge in (spec.fmin, spec.fmax))
    distance = (high - low) / (spec.height + 1)
    filters = np.zeros((spec.height, spec.n_fft // 2 + 1))
    for band in range(spec.height):
        middle = low + (band + 1) * distance
        for place in range(spec.n_fft // 2 + 1):
            mel = 1127 * np.log(1 + place * spec.sample_rate / spec.n_fft / 700)
            filters[band, place] = max(0.0, 1 - abs(mel - middle) / distance)
    return filters


def spectra(samples: np.ndarray, spec: SpectrogramSpec, *, symmetric: bool = False) -> np.ndarray:
    """SciPy's short-time Fourier transform, in double precision, of frames that lie inside the sound."""
    window = np.pad(scipy.signal.windows.hann(spec.win_length, sym=symmetric), (spec.n_fft - spec.win_length) // 2)
    starts = range(0, len(samples) - spec.n_fft + 1, spec.hop_length)
    return np.array([np.fft.rfft(window * samples[start : start + spec.n_fft]) for start in starts]).T


def inside(values: np.ndarray, spec: SpectrogramSpec, count: int) -> np.ndarray:
    """Of frames centred on multiples of the hop, those of `spectra`, whose first frame begins with the sound."""
    first = spec.n_fft // 2 / spec.hop_length
    assert first == int(first)
    return values[:, int(first) : int(first) + count]


@pytest.mark.parametrize("spec", [EFFICIENTAT, YAMNET, replace(WHISPER, n_fft=1024, mel="kaldi")])
def test_kaldi_mel_filters_are_triangular_in_mel(spec: SpectrogramSpec) -> None:
    np.testing.assert_allclose(spec.mel_filters, kaldi_filters(spec), atol=1e-6)


def test_htk_mel_filters_equal_those_of_librosa() -> None:
    spec = SpectrogramSpec(mel="htk", height=64)
    expected = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=64, fmin=30.0, fmax=8_000.0, htk=True, norm=None)
    np.testing.assert_allclose(spec.mel_filters, expected, atol=1e-6)


def test_efficientats_log_mel_equals_a_scipy_reference() -> None:
    """x[t] - 0.97 x[t-1], symmetric Hann of 800, power, Kaldi's filters, ln(x + 1e-5): equal within 0.01."""
    spec = replace(EFFICIENTAT, hop_length=256)  # so that SciPy's frames can be compared
    samples = speech(spec.sample_rate)
    emphasised = scipy.signal.lfilter([1, -0.97], [1], samples.astype(np.float64))
    power = np.abs(spectra(emphasised, spec, symmetric=True)) ** 2
    expected = np.log(kaldi_filters(spec) @ power + 1e-5)
    found = inside(log_mel(samples, spec), spec, expected.shape[1]) * np.log(10) / 10
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], atol=0.01)


def test_yamnets_log_mel_equals_a_scipy_reference() -> None:
    """Magnitude, filters linear in mel, ln(x + 0.001): equal within 0.001."""
    spec = replace(YAMNET, hop_length=128)
    samples = speech(spec.sample_rate)
    expected = np.log(kaldi_filters(spec) @ np.abs(spectra(samples.astype(np.float64), spec)) + 0.001)
    found = inside(log_mel(samples, spec), spec, expected.shape[1]) * np.log(10) / 10
    np.testing.assert_allclose(found, expected, atol=0.001)


def test_whispers_log_mel_equals_that_of_transformers() -> None:
    """log10 floored at 1e-10 and at the maximum less 8, plus 4, over 4: equal within 0.002 but for the padded ends."""
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=80)
    samples = speech(16_000)
    expected = extractor(samples, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    found = (log_mel(samples, WHISPER) / 10 + 4) / 4
    frames = slice(2, len(samples) // 160 - 2)
    np.testing.assert_allclose(found[:, frames], expected[:, frames], atol=0.002)


@pytest.mark.parametrize("spec", [EFFICIENTAT, YAMNET, WHISPER])
def test_pixels_represent_the_values_within_half_a_gray_level(spec: SpectrogramSpec) -> None:
    samples = speech(spec.sample_rate)
    values, picture = log_mel(samples, spec), render(samples, spec)
    assert spec.low <= values.min() and values.max() <= spec.high
    before = (spec.width - values.shape[1]) // 2
    shown = picture[::-1, before : before + values.shape[1]] / 255 * (spec.high - spec.low) + spec.low
    np.testing.assert_allclose(shown, values, atol=0.51 * (spec.high - spec.low) / 255)


@pytest.mark.parametrize("mel", ["slaney", "htk", "kaldi"])
def test_band_of_finds_the_mel_band_with_the_largest_weight(mel: str) -> None:
    spec = SpectrogramSpec(mel=mel, n_fft=2048)  # type: ignore[arg-type]
    for frequency in (250.0, 1000.0, 3000.0):
        loudest = spec.mel_filters[:, round(frequency * spec.n_fft / spec.sample_rate)].argmax()
        assert band_of(frequency, spec) == pytest.approx(loudest, abs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preemphasis": 1.5}, "preemphasis is 1.5; it must lie between 0 and 1"),
        ({"log_offset": -1.0}, "log_offset is -1.0"),
        ({"log_offset": float("nan")}, "log_offset is nan"),
        ({"range_db": 0.0}, "range_db is 0.0; it must be positive, or null"),
        ({"mel": "bark"}, "mel is 'bark'; it must be one of slaney, htk, kaldi"),
        ({"window": "kaiser"}, "window is 'kaiser'"),
        ({"spectrum": "phase"}, "spectrum is 'phase'"),
    ],
)
def test_invalid_front_end_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SpectrogramSpec(**changes)  # type: ignore[arg-type]
