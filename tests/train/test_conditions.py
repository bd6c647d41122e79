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


@pytest.mark.parametrize(("name", "level_db"), [("mn04_as-16k", 1.0), ("yamnet", 2.0)])
def test_reverberation_decays_at_the_requested_rate(name: str, level_db: float) -> None:
    """A picture of magnitudes has half the dB of the sound."""
    spec = SPECS[name]
    pixels = np.zeros(spec.shape, np.uint8)
    pixels[:, 20] = 255
    pixels[:, 21:] = 1  # quiet, but not black
    room = ConditionSettings(probability=1.0, **{**NOTHING, "decay_s": (0.5, 0.5), "room_db": (0.0, 0.0)})
    after = Conditions(room, spec)(pixels, 0)[50].astype(float) * (spec.high - spec.low) / 255 * level_db
    hops = 25
    expected = 60 * hops * spec.hop_length / spec.sample_rate / 0.5
    assert after[25] - after[25 + hops] == pytest.approx(expected, abs=0.7)


@pytest.mark.parametrize("name", ["mn04_as-16k", "yamnet"])
def test_noise_on_pictures_matches_noise_in_sound(name: str) -> None:
    """White noise has the same power in each Hz, so bands have it by their width: the sound tells how much."""
    spec, samples = SPECS[name], _speech_like()
    generator = np.random.default_rng(1)
    clean, heard = render(samples, spec), render(samples + 0.01 * generator.standard_normal(samples.shape), spec)
    unit_db = (spec.high - spec.low) / 255 * (2 if spec.spectrum == "magnitude" else 1)
    pauses = np.flatnonzero((clean.max(axis=0) > 0) & (clean.max(axis=0) < np.median(clean.max(axis=0)) - 20))
    band = spec.height // 2
    level_db = 10 * np.log10(np.mean(10 ** (heard[band, pauses] * unit_db / 10))) - clean.max() * unit_db
    noise = {"noise_db": (level_db, level_db)}
    seen = Conditions(ConditionSettings(probability=1.0, **{**NOTHING, **noise}), spec)(clean, 0)
    assert seen[band, pauses].mean() == pytest.approx(heard[band, pauses].mean(), abs=8)
    assert abs(seen[band, pauses].mean() - clean[band, pauses].mean()) > 20


def test_black_columns_inside_a_clip_are_not_padding() -> None:
    pixels = render(_speech_like()[:RATE], SPEC)
    inside = np.flatnonzero(pixels.any(axis=0))[10]
    pixels[:, inside] = 0
    noisy = _only(noise_db=(-20.0, -20.0))(pixels, 0)
    assert noisy[:, inside].mean() > 100 and not noisy[:, -1].any()


def test_a_tail_of_reverberation_has_the_same_microphone_as_the_clip() -> None:
    absolute = dataclasses.replace(SPEC, scale="full_scale", low=-75.0, high=45.0)
    pixels = render(_speech_like()[: RATE // 2], absolute)
    room = {"decay_s": (1.0, 1.0), "room_db": (0.0, 0.0)}
    plain, quiet = (
        Conditions(ConditionSettings(probability=1.0, **{**NOTHING, **room, "gain_db": (gain, gain)}), absolute)(
            pixels, 0
        )
        for gain in (0.0, -10.0)
    )
    last = np.flatnonzero(pixels.any(axis=0))[-1]
    tail = plain[:, last + 1 : last + 20].astype(int) - quiet[:, last + 1 : last + 20]
    assert np.median(tail[plain[:, last + 1 : last + 20] > 40]) == pytest.approx(10 * 255 / 120, abs=1)


def test_a_peak_above_the_scale_s_zero_keeps_its_level() -> None:
    spec = dataclasses.replace(SPEC, low=-80.0, high=10.0)
    assert spec.scale == "clip_peak"
    pixels = render(_speech_like(), spec)
    found = Conditions(ConditionSettings(probability=1.0, **NOTHING), spec)(pixels, 0)
    assert np.abs(found.astype(int) - pixels).max() <= 1


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
