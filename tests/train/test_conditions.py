"""Recording conditions on pictures, compared with pictures rendered from sound under the same condition."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.signal

from spectro.errors import TrainingError
from spectro.model.pretrained import SPECS
from spectro.picture.frontend import band_of
from spectro.picture.spectrogram import render
from spectro.train.conditions import Conditions, ConditionSettings

SPEC = SPECS["mn04_as-16k"]
RATE = SPEC.sample_rate
NOTHING: dict[str, Any] = {
    "gain_db": (0.0, 0.0),
    "colour_db": 0.0,
    "low_cut_hz": (0.0, 0.0),
    "high_cut_hz": (8_000.0, 8_000.0),
}
NOTHING |= {"noise_db": (-200.0, -200.0), "noise_slope_db": (0.0, 0.0), "room_db": (-200.0, -200.0)}


def _speech_like() -> np.ndarray:
    """Noise in syllables, three per second, with the spectral slope of speech."""
    generator = np.random.default_rng(0)
    noise = scipy.signal.lfilter([1], [1, -0.9], generator.standard_normal(3 * RATE))
    syllables = np.clip(np.sin(2 * np.pi * 3 * np.arange(3 * RATE) / RATE), 0, None) + 1e-3
    return (0.1 * noise * syllables).astype(np.float32)


def _only(**changes: Any) -> Conditions:
    """Apply every condition; only those in `changes` have an effect."""
    return Conditions(ConditionSettings(probability=1.0, **{**NOTHING, **changes}), SPEC)


def test_neutral_conditions_leave_pictures_unchanged() -> None:
    pixels = render(_speech_like(), SPEC)
    assert np.abs(_only()(pixels, 0).astype(int) - pixels).max() <= 1


def test_a_telephone_band_on_pictures_matches_band_pass_filtered_sound() -> None:
    samples = _speech_like()
    sections = scipy.signal.butter(12, (300, 3_400), "bandpass", fs=RATE, output="sos")
    filtered = render(scipy.signal.sosfiltfilt(sections, samples).astype(np.float32), SPEC)
    altered = _only(low_cut_hz=(300.0, 300.0), high_cut_hz=(3_400.0, 3_400.0))(render(samples, SPEC), 0)
    inside = slice(SPEC.height - 1 - int(band_of(2_800, SPEC)), SPEC.height - 1 - int(band_of(500, SPEC)))
    difference = altered[inside].astype(int) - filtered[inside]
    shift = np.median(difference)  # both are rendered relative to their own loudest value
    assert abs(shift) <= 4 and np.abs(difference - shift).mean() < 2  # of 255: 0.6 dB
    assert not altered[: SPEC.height - 1 - int(np.ceil(band_of(3_400, SPEC)))].any()


def test_noise_has_the_requested_level_and_leaves_padding_black() -> None:
    pixels = render(_speech_like()[:RATE], SPEC)
    noisy = _only(noise_db=(-40.0, -40.0))(pixels, 3)
    sounding = pixels.any(axis=0)
    assert not noisy[:, ~sounding].any()
    quiet = noisy[:, sounding & (pixels.max(axis=0) < 60)]
    levels_db = quiet.astype(float) * (SPEC.high - SPEC.low) / 255 + SPEC.low
    assert 10 * np.log10(np.mean(10 ** (levels_db / 10))) == pytest.approx(-40, abs=1.5)


def test_reverberation_decays_at_the_requested_rate() -> None:
    pixels = np.zeros(SPEC.shape, np.uint8)
    pixels[:, 20] = 255
    pixels[:, 21:] = 1  # quiet, but not black
    after = _only(decay_s=(0.5, 0.5), room_db=(0.0, 0.0))(pixels, 0)[50].astype(float) * 75 / 255
    hops = 25
    assert after[25] - after[25 + hops] == pytest.approx(60 * hops * SPEC.hop_length / RATE / 0.5, abs=0.7)


def test_gain_changes_only_pictures_with_an_absolute_scale() -> None:
    pixels = render(_speech_like(), SPEC)
    louder = ConditionSettings(probability=1.0, **{**NOTHING, "gain_db": (6.0, 6.0)})
    assert np.abs(Conditions(louder, SPEC)(pixels, 0).astype(int) - pixels).max() <= 1
    absolute = dataclasses.replace(SPEC, scale="full_scale", low=-75.0, high=45.0)
    quiet = render(_speech_like(), absolute)
    changed = Conditions(louder, absolute)(quiet, 0).astype(int) - quiet
    assert np.median(changed[quiet > 50]) == pytest.approx(6 * 255 / 120, abs=1)


def test_equal_seeds_give_equal_pictures_and_default_settings_change_nothing() -> None:
    pixels = render(_speech_like(), SPEC)
    conditions = Conditions(ConditionSettings(probability=0.5), SPEC)
    first = conditions(pixels, 7)
    np.testing.assert_array_equal(conditions(pixels, 7), first)
    assert any(not np.array_equal(conditions(pixels, seed), first) for seed in range(3))
    assert Conditions(ConditionSettings(), SPEC)(pixels, 7) is pixels


def test_invalid_conditions_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"conditions\.probability is 2"):
        ConditionSettings(probability=2)
    with pytest.raises(TrainingError, match=r"conditions\.decay_s is 1\.0, 0\.5"):
        ConditionSettings(decay_s=(1.0, 0.5))
    with pytest.raises(TrainingError, match="gray"):
        Conditions(ConditionSettings(), dataclasses.replace(SPEC, channels="deltas"))
