import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import librosa
import matplotlib
import numpy as np
import pytest

from spectro.errors import SpecError
from spectro.picture.frontend import log_mel
from spectro.picture.spec import SpectrogramSpec
from spectro.picture.spectrogram import render, shown
from tests.conftest import RATE, voice

SPEC = SpectrogramSpec()


def _librosa_db(samples: np.ndarray, spec: SpectrogramSpec, win_length: int | None = None) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=samples,
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        win_length=win_length or spec.win_length,
        hop_length=spec.hop_length,
        n_mels=spec.height,
        fmin=spec.fmin,
        fmax=spec.fmax,
        pad_mode="constant",
    )
    return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, n_fft=2048, win_length=1024, hop_length=160, height=224, fmin=0.0),
        replace(SPEC, sample_rate=22_050, n_fft=512, win_length=512, hop_length=256, height=40, fmax=11_025.0),
    ],
)
def test_log_mel_equals_that_of_librosa_within_a_hundredth_of_a_decibel(spec: SpectrogramSpec) -> None:
    expected_filters = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.height, fmin=spec.fmin, fmax=spec.fmax
    )
    np.testing.assert_allclose(spec.mel_filters, expected_filters, atol=1e-7)
    noise = 0.05 * np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    for samples in (voice(1.3), noise, voice(0.15)):
        found, expected = log_mel(samples, spec), _librosa_db(samples, spec)
        loud = expected > expected.max() - 70
        np.testing.assert_allclose(found[loud], expected[loud], atol=0.01)
        np.testing.assert_allclose(found, expected, atol=0.2)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 2.8, 7.0])
@pytest.mark.parametrize("placement", ["center", "start"])
def test_a_picture_has_the_specs_size_for_a_clip_of_any_length(seconds: float, placement: str) -> None:
    spec = replace(SPEC, placement=placement)
    image = render(voice(seconds), spec)
    assert (image.shape, image.dtype) == ((128, 224), np.uint8)


def test_gray_levels_are_decibels_relative_to_full_scale() -> None:
    spec = replace(SPEC, scale="full_scale", low=-80.0, high=0.0)
    samples = voice(2.0)
    expected = np.clip((_librosa_db(samples, spec) + 80) / 80, 0, 1) * 255
    image = render(samples, spec)
    frames = expected.shape[1]
    start = (spec.width - frames) // 2
    np.testing.assert_allclose(image[::-1, start : start + frames], expected, atol=0.55)
    assert not image[:, :start].any()
    assert not image[:, start + frames :].any()


def test_only_the_full_scale_pictures_depend_on_loudness() -> None:
    noise = 0.01 * np.random.default_rng(2).standard_normal(32_000)  # keeps all values above the floor
    samples = voice(2.0) + noise.astype(np.float32)
    for scale, low, high, same in (
        ("full_scale", -80.0, 0.0, False),
        ("clip_peak", -60.0, 0.0, True),
        ("clip_norm", -2.5, 2.5, True),
    ):
        spec = replace(SPEC, scale=scale, low=low, high=high)
        loud, quiet = render(samples, spec).astype(int), render(0.25 * samples, spec).astype(int)
        assert bool(np.abs(loud - quiet).max() <= 1) is same, scale


def test_clip_peak_is_white_at_the_loudest_value_and_black_below_its_range() -> None:
    spec = replace(SPEC, scale="clip_peak", low=-40.0, high=0.0)
    values = _librosa_db(voice(2.0), spec)
    image = render(voice(2.0), spec)
    assert image.max() == 255
    assert (image > 0).sum() == pytest.approx((values > values.max() - 40 + 40 / 510).sum(), abs=3)


def test_clip_norm_maps_the_clips_mean_to_middle_gray() -> None:
    spec = replace(SPEC, low=-6.0, high=6.0)
    samples = voice(3.0)
    image = render(samples, spec)
    values = (image / 255 - 0.5) * 12
    assert values.mean() == pytest.approx(0, abs=0.02)
    assert values.std() == pytest.approx(1, abs=0.02)


def test_low_frequencies_are_at_the_bottom_and_time_runs_to_the_right() -> None:
    time = np.arange(32_000) / 16_000
    rising = np.sin(2 * np.pi * np.where(time < 1, 300, 3000) * time).astype(np.float32)
    rows = render(rising, replace(SPEC, scale="clip_peak", low=-30.0, high=0.0)).argmax(axis=0)
    assert rows[60] > rows[160]


def test_a_colour_map_is_applied_to_the_gray_picture() -> None:
    gray = render(voice(), SPEC)
    coloured = render(voice(), replace(SPEC, channels="colormap", colormap="viridis"))
    expected = matplotlib.colormaps["viridis"](gray, bytes=True)[..., :3]
    np.testing.assert_array_equal(coloured, expected)


def test_deltas_equal_those_of_librosa() -> None:
    spec = replace(SPEC, channels="deltas", low=-6.0, high=6.0)
    samples = voice(2.9)[: spec.width * spec.hop_length - 1]
    values = _librosa_db(samples, spec)
    scaled = ((values - values.mean()) / values.std() + 6) / 12
    image = render(samples, spec)[::-1]
    for order, span in ((1, 0.05), (2, 0.02)):
        delta = librosa.feature.delta(scaled, order=order)
        expected = np.clip(0.5 + delta / (2 * span), 0, 1) * 255
        np.testing.assert_allclose(image[..., order], expected, atol=1.5)


def test_the_channels_windows_are_spectrograms_of_three_window_lengths() -> None:
    spec = replace(SPEC, channels="windows", win_length=512, scale="full_scale", low=-80.0, high=0.0)
    samples = voice(2.9)[: spec.width * spec.hop_length - 1]
    image = render(samples, spec)[::-1]
    for channel, win_length in enumerate((256, 512, 1024)):
        expected = np.clip((_librosa_db(samples, spec, win_length) + 80) / 80, 0, 1) * 255
        np.testing.assert_allclose(image[..., channel], expected, atol=0.55)


def test_the_fingerprint_changes_with_every_field_that_changes_pictures() -> None:
    changes = {
        "sample_rate": 32_000, "n_fft": 2048, "win_length": 512, "hop_length": 160, "height": 96, "width": 200,
        "fmin": 20.0, "fmax": 7000.0, "scale": "clip_peak", "low": -3.0, "high": 3.0, "channels": "deltas",
        "trim_db": None, "placement": "start", "preemphasis": 0.97, "window": "hann_symmetric",
        "spectrum": "magnitude", "mel": "kaldi", "log_offset": 1e-5, "range_db": 80.0,
    }  # fmt: skip
    assert set(changes) == {one.name for one in dataclasses.fields(SPEC)} - {"colormap"}
    prints = {replace(SPEC, **{name: value}).fingerprint for name, value in changes.items()}
    assert len(prints | {SPEC.fingerprint}) == len(changes) + 1
    assert replace(SPEC, fmax=8000).fingerprint == SPEC.fingerprint
    assert replace(SPEC, colormap="viridis").fingerprint == SPEC.fingerprint
    coloured = replace(SPEC, channels="colormap")
    assert replace(coloured, colormap="viridis").fingerprint != coloured.fingerprint


def test_a_spec_is_restored_from_its_dict_and_from_a_json_file(tmp_path: Path) -> None:
    assert SpectrogramSpec.from_dict(SPEC.to_dict()) == SPEC
    path = tmp_path / "spec.json"
    path.write_text('{"spec": {"height": 96}}')
    assert SpectrogramSpec.from_file(path) == replace(SPEC, height=96)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0}, "height is 0"),
        ({"low": 1.0, "high": 1.0}, "low must lie at least 0.01 below high"),
        ({"fmax": 9000.0}, "half of sample_rate"),
        ({"win_length": 2000}, "raise n_fft"),
        ({"n_fft": 1025}, "n_fft is 1025; it must be even"),
        ({"channels": "windows"}, "1280 samples; n_fft is 1024"),
        ({"height": 400}, "mel bands hold no FFT bin; raise n_fft"),
        ({"trim_db": -3.0}, "trim_db"),
        ({"channels": "colormap", "colormap": "nope"}, "'nope'"),
        ({"scale": "loud"}, "scale is 'loud'; it must be one of full_scale"),
        ({"colour": 1}, "unknown fields colour"),
        ({"height": "tall"}, "height is .tall.; it must be a whole number"),
    ],
)
def test_the_error_for_a_contradictory_spec_names_the_fields(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SpectrogramSpec.from_dict(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_rate": 3_999}, "sample_rate is 3999; it must be a whole number from 4000 to 768000"),
        ({"sample_rate": 768_001}, "sample_rate is 768001"),
        ({"n_fft": 2**24}, "n_fft is 16777216"),
        ({"win_length": 1}, "win_length is 1"),
        ({"height": 10**9}, "height is 1000000000"),
        ({"width": 10**6}, "width is 1000000"),
        ({"hop_length": 1}, r"a picture shows 0\.014 s .* at least"),
        ({"height": 2048, "width": 4096}, "the pixels of a picture, is 8388608; it must be at most 1048576"),
        ({"hop_length": 65_536, "width": 4096}, "the samples that it shows, is 268435456"),
        ({"n_fft": 65_536, "height": 1024}, "the weights of its mel filters, is 33554432"),
        ({"height": 224.5}, r"height is 224\.5"),
        ({"height": 224.0}, r"height is 224\.0"),
        ({"height": True}, "height is True"),
        ({"fmin": True}, "fmin is True"),
        ({"fmin": "30"}, "fmin is '30'"),
        ({"fmax": None}, "fmax is None"),
        ({"fmax": float("inf")}, "fmax is inf"),
        ({"fmin": float("nan")}, "fmin is nan"),
        ({"fmin": 100.0, "fmax": 100.5}, "at least 1 Hz apart"),
        ({"low": -1e308, "high": 1e308}, r"low is -1e\+308; it must be a number between -1000 and 1000"),
        ({"low": 0.0, "high": 1e-320}, "low must lie at least 0.01 below high"),
        ({"trim_db": 10**400}, "trim_db is 1000"),
        ({"colormap": ["magma"]}, "colormap is .'magma'.; it must be the name"),
        ({"scale": ["clip_norm"]}, "scale is .'clip_norm'.; it must be one of"),
        ({"a" * 1_000_000: 1, "\x1b[31m": 2}, r"unknown fields \\x1b\[31m, aaaa"),
        ([["height", 3]], "it must be a mapping"),
    ],
    ids=range(26),
)
def test_a_spec_with_values_out_of_bounds_or_of_the_wrong_type_is_refused(fields: object, message: str) -> None:
    with pytest.raises(SpecError, match=message) as found:
        SpectrogramSpec.from_dict(fields)
    assert len(str(found.value)) < 500 and str(found.value).isprintable()


def test_specs_of_common_networks_are_accepted() -> None:
    for fields in (
        {"n_fft": 2048, "height": 299, "width": 299},
        {"n_fft": 4096, "height": 512, "width": 512, "sample_rate": 48_000, "fmax": 24_000.0},
        {"n_fft": 8192, "height": 512, "width": 2_048, "sample_rate": 96_000, "fmax": 48_000.0, "fmin": 0.0},
        {"sample_rate": 8_000, "fmax": 4_000.0, "width": 2_000, "hop_length": 80},
    ):
        assert SpectrogramSpec(**fields).to_dict() == SpectrogramSpec.from_dict(fields).to_dict()


def test_fingerprints_equal_those_of_earlier_versions() -> None:
    assert SPEC.fingerprint == "27eae4f0547697c2"
    assert replace(SPEC, win_length=512, channels="windows", trim_db=None).fingerprint == "bac4f55d78209c2a"
    assert replace(SPEC, channels="colormap", colormap="viridis", fmax=8000).fingerprint == "6e7462b38dba0cf5"


def test_reading_and_rendering_import_neither_torch_nor_librosa() -> None:
    code = (
        "import sys; from spectro.audio import augment, recording; from spectro.picture import png, spectrogram; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'librosa', 'pandas', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def quiet(seconds: float, noise: float = 0.0) -> np.ndarray:
    return np.random.default_rng(2).normal(0, noise, round(seconds * RATE)).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("order", [(0, 1, 0), (0, 0, 1), (1, 0, 0)])
def test_a_picture_of_a_long_recording_shows_the_speech_and_not_the_silence(
    noise: float, order: tuple[int, ...]
) -> None:
    """Two seconds of speech, with ten seconds of near silence before, after or on both sides."""
    parts = [voice(2.0) if one else quiet(10 if sum(order) == 1 else 0, noise) for one in order]
    begin = sum(map(len, parts[: order.index(1)]))
    start, stop = shown(np.concatenate(parts), SPEC)
    assert (start, stop) == pytest.approx((begin, begin + 2 * RATE), abs=0.05 * RATE)


def test_the_longest_of_several_utterances_is_shown() -> None:
    samples = np.concatenate([voice(0.8), quiet(10), voice(2.2, pitch=200), quiet(10), voice(0.5)])
    assert shown(samples, SPEC) == pytest.approx((round(10.8 * RATE), 13 * RATE), abs=0.05 * RATE)


def test_the_middle_or_the_start_of_a_long_utterance_is_shown() -> None:
    samples = voice(8.0)
    length = SPEC.width * SPEC.hop_length - 1
    start, stop = shown(samples, SPEC)
    assert stop - start == length
    assert start == (len(samples) - length) // 2
    assert shown(samples, replace(SPEC, placement="start")) == (0, length)
    assert shown(voice(1.0), SPEC) == (0, RATE)


def test_without_trimming_the_full_width_with_the_most_sound_is_shown() -> None:
    samples = np.concatenate([voice(2.0), quiet(10)])
    start, stop = shown(samples, replace(SPEC, trim_db=None))
    assert stop - start == SPEC.width * SPEC.hop_length - 1
    assert start <= 0.1 * RATE
