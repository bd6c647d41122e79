import numpy as np
import pytest

from spectro.audio.highpass import HighPass, highpass
from tests.conftest import RATE, voice


def _gain_db(frequency: float, rate: int = RATE) -> float:
    """Gain of a sine at its own frequency, in dB, away from the ends."""
    time = np.arange(4 * rate) / rate
    wave = np.exp(-2j * np.pi * frequency * time)
    middle = slice(rate, 3 * rate)
    sine = np.cos(2 * np.pi * frequency * time).astype(np.float32)
    found = (highpass(sine, rate)[middle] * wave[middle]).mean() / (sine[middle] * wave[middle]).mean()
    return float(20 * np.log10(abs(found)))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_rumble_is_attenuated_and_frequencies_from_20_hz_are_kept(rate: int) -> None:
    assert _gain_db(1, rate) < -35
    assert _gain_db(4, rate) < -12
    for frequency in (20, 30, 50, 60, 85, 101, 130, 199, 1000):
        assert abs(_gain_db(frequency, rate)) < 0.1, frequency


@pytest.mark.parametrize("samples", [0, 1, 100, 320, 321, 500, 3_000, 16_001])
def test_a_constant_offset_is_removed_at_any_length(samples: int) -> None:
    found = highpass(np.full(samples, 0.1, np.float32), RATE)
    assert found.shape == (samples,)
    assert np.abs(found).max(initial=0) < 1e-6


def test_a_step_of_the_offset_has_no_effect_beyond_a_tenth_of_a_second() -> None:
    samples = np.concatenate([np.zeros(RATE), np.full(RATE, 0.05), np.zeros(RATE)]).astype(np.float32)
    found = np.abs(highpass(samples, RATE))
    away = np.ones(3 * RATE, bool)
    for step in (RATE, 2 * RATE):
        away[step - RATE // 10 : step + RATE // 10] = False
    assert found[away].max() < 1e-6
    assert found.max() < 0.03


def test_speech_passes_unaltered() -> None:
    samples = voice(2.0)
    np.testing.assert_allclose(highpass(samples, RATE)[1600:-1600], samples[1600:-1600], atol=1e-5)


@pytest.mark.parametrize("size", [100, 777, 16_000, 10**6])
def test_filtering_in_blocks_equals_filtering_the_whole(size: int) -> None:
    samples = (np.random.default_rng(0).normal(0, 0.1, 61_234) + 0.05).astype(np.float32)
    stream = HighPass(RATE)
    parts = [stream.add(samples[at : at + size]) for at in range(0, len(samples), size)]
    np.testing.assert_allclose(np.concatenate([*parts, stream.finish()]), highpass(samples, RATE), atol=1e-6)


def test_memory_does_not_grow_with_the_duration() -> None:
    stream = HighPass(RATE)
    for _ in range(200):
        stream.add(voice(0.1))
    assert len(stream._kept) < RATE
