import numpy as np
import pytest

from spectro.audio import augment
from spectro.audio.augment import STEPS, Augmentation, AugmentSettings
from spectro.errors import AugmentationError
from tests.conftest import RATE, pitch_of, voice

SAMPLES = voice(2.0)


def _apply(**parameters: float) -> np.ndarray:
    return augment.apply(SAMPLES, RATE, Augmentation(parameters, (7,)))


def test_stretching_changes_duration_and_keeps_pitch() -> None:
    stretched = _apply(stretch_rate=1.25)
    assert len(stretched) == pytest.approx(len(SAMPLES) / 1.25, rel=0.01)
    assert pitch_of(stretched) == pytest.approx(pitch_of(SAMPLES), rel=0.02)


def test_pitch_shift_changes_pitch_and_keeps_duration() -> None:
    shifted = _apply(pitch_semitones=3.0)
    assert len(shifted) == len(SAMPLES)
    assert pitch_of(shifted) == pytest.approx(pitch_of(SAMPLES) * 2 ** (3 / 12), rel=0.02)


def test_speed_changes_duration_and_pitch() -> None:
    faster = _apply(speed_rate=1.2)
    assert len(faster) == pytest.approx(len(SAMPLES) / 1.2, rel=0.01)
    assert pitch_of(faster) == pytest.approx(pitch_of(SAMPLES) * 1.2, rel=0.02)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_requested_signal_to_noise_ratio(snr_db: float) -> None:
    noise = _apply(snr_db=snr_db) - SAMPLES
    measured = 10 * np.log10(np.mean(SAMPLES**2) / np.mean(noise**2))
    assert measured == pytest.approx(snr_db, abs=0.3)


def test_shift_moves_samples_and_pads_with_zeros() -> None:
    later, earlier = _apply(shift_share=0.1), _apply(shift_share=-0.1)
    moved = len(SAMPLES) // 10
    np.testing.assert_array_equal(later, np.concatenate([np.zeros(moved, np.float32), SAMPLES[:-moved]]))
    np.testing.assert_array_equal(earlier, np.concatenate([SAMPLES[moved:], np.zeros(moved, np.float32)]))


def test_gain_is_in_decibels() -> None:
    np.testing.assert_allclose(_apply(gain_db=-6.0206), SAMPLES / 2, rtol=1e-5)


def test_an_augmentation_depends_only_on_clip_copy_number_and_seed() -> None:
    settings = AugmentSettings(seed=3)
    drawn = augment.sample(settings, "clip", 1)
    assert augment.sample(settings, "clip", 1) == drawn
    others = [
        augment.sample(settings, "clip", 2),
        augment.sample(settings, "other", 1),
        augment.sample(AugmentSettings(seed=4), "clip", 1),
    ]
    assert drawn not in others
    first = augment.apply(SAMPLES, RATE, drawn)
    np.random.default_rng().random(5)
    np.testing.assert_array_equal(augment.apply(SAMPLES, RATE, drawn), first)


def test_sampled_parameters_stay_within_and_cover_their_ranges() -> None:
    settings = AugmentSettings(probability=0.5, gain_db=None)
    drawn = [augment.sample(settings, f"clip{number}", 1) for number in range(400)]
    assert all(one.parameters for one in drawn)
    for name in STEPS:
        values = [one.parameters[name] for one in drawn if name in one.parameters]
        if name == "gain_db":
            assert not values
            continue
        low, high = getattr(settings, name)
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
        assert 140 < len(values) < 260


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probability": 1.5}, "probability"),
        ({"gain_db": (3.0, -3.0)}, "lower bound first"),
        ({"speed_rate": (0.0, 1.0)}, "must be positive"),
        ({"shift_share": (-0.5, 1.5)}, "must lie between -1 and 1"),
        (dict.fromkeys(STEPS, None), "every step is null"),
    ],
)
def test_invalid_settings_raise_an_augmentation_error(fields: dict[str, object], message: str) -> None:
    with pytest.raises(AugmentationError, match=message):
        AugmentSettings(**fields)  # type: ignore[arg-type]


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(AugmentationError, match="unknown step 'reverb'"):
        _apply(reverb=1.0)
