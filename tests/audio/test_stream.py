import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spectro.audio import recording, stream
from spectro.audio.stream import Activity, Resampler
from spectro.errors import AudioError, AudioFormatError, AudioLengthError
from tests.conftest import RATE, WriteWav, voice


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_joined_blocks_equal_the_whole_recording(wav: WriteWav, rate: int) -> None:
    path = wav(samples=voice(7.3, rate), rate=rate)
    joined = np.concatenate(list(stream.blocks(path, sample_rate=RATE)))
    whole = recording.read(path, sample_rate=RATE)
    assert joined.shape == (len(whole),)
    np.testing.assert_allclose(joined, whole, atol=2e-4)


def test_channels_are_averaged_or_read_separately(wav: WriteWav) -> None:
    left, right = voice(2.5), voice(2.5, pitch=220)
    path = wav(samples=np.stack([left, right], axis=1), subtype="FLOAT")
    for channel, expected in enumerate((left, right)):
        apart = np.concatenate(list(stream.blocks(path, sample_rate=RATE, channel=channel)))
        np.testing.assert_allclose(apart, expected, atol=1e-3)
    mean = np.concatenate(list(stream.blocks(io.BytesIO(path.read_bytes()), sample_rate=RATE)))
    np.testing.assert_allclose(mean, (left + right) / 2, atol=1e-3)


def test_blocks_before_a_fault_are_yielded_and_the_error_gives_its_time(wav: WriteWav, tmp_path: Path) -> None:
    samples = voice(4.0)
    samples[int(2.5 * RATE)] = np.nan
    blocks = []
    with pytest.raises(AudioError, match=r"nan\.wav: after 2\.0 s: holds NaN or infinite samples"):
        blocks.extend(stream.blocks(wav("nan.wav", samples, subtype="FLOAT"), sample_rate=RATE))
    assert sum(map(len, blocks)) == 2 * RATE
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * RATE)
    whole = wav("whole.flac", noise).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioFormatError, match=r"cut\.flac"):
        blocks = list(stream.blocks(tmp_path / "cut.flac", sample_rate=RATE))


def test_empty_and_too_long_recordings_are_refused(wav: WriteWav) -> None:
    with pytest.raises(AudioError, match="no samples"):
        list(stream.blocks(wav(samples=np.zeros(0, np.float32)), sample_rate=RATE))
    with pytest.raises(AudioLengthError, match=r"lasts 3\.0 s"):
        list(stream.blocks(wav(samples=voice(3)), sample_rate=RATE, max_duration_s=2))


def test_the_block_size_is_bounded_for_many_channels(wav: WriteWav, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BLOCK_VALUES", 5000)
    samples = np.stack([voice(1.0)] * 4, axis=1)
    path = wav(samples=samples, subtype="FLOAT")
    with soundfile.SoundFile(path) as file:
        assert recording.read_block(file, 10**9).shape == (1250, 4)
    np.testing.assert_allclose(recording.read(path, sample_rate=RATE), samples[:, 0], atol=1e-4)


def test_the_resampler_does_not_depend_on_the_block_size() -> None:
    samples = voice(3.0, 44_100)
    results = []
    for size in (441, 10_000, 200_000):
        one = Resampler(44_100, RATE)
        parts = [one.add(samples[start : start + size]) for start in range(0, len(samples), size)]
        results.append(np.concatenate([*parts, one.finish()]))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-6)
    assert len(results[0]) == pytest.approx(3 * RATE, abs=2)


def _active(samples: np.ndarray, silence_db: float = -65, block: int = 777) -> np.ndarray:
    activity = Activity(RATE, silence_db)
    return np.concatenate([activity.add(samples[start : start + block]) for start in range(0, len(samples), block)])


def test_frames_of_sound_and_of_silence_are_distinguished() -> None:
    samples = np.concatenate([np.zeros(RATE), voice(1.0), np.zeros(RATE)]).astype(np.float32)
    found = _active(samples)
    assert len(found) == 150
    assert found[50:100].all()
    assert not found[:50].any()
    assert not found[100:].any()
    assert not _active(samples * 1e-5).any()


def test_steady_noise_counts_as_silence_and_speech_above_it_as_sound() -> None:
    noise = np.random.default_rng(1).normal(0, 0.003, 12 * RATE).astype(np.float32)  # -50 dB
    speech = noise.copy()
    speech[6 * RATE : 8 * RATE] += voice(2.0)
    found = _active(speech)
    assert found[300:400].mean() > 0.9
    assert found[400:].mean() < 0.05


def test_a_stream_keeps_sound_on_channels_that_cancel_out(wav: WriteWav) -> None:
    clip = np.concatenate([np.zeros(3 * RATE), voice(3.0)])
    noise = np.random.default_rng(0).normal(0, 1e-3, (len(clip), 2))
    path = wav(samples=np.stack([clip, -clip], axis=1) + noise, subtype="FLOAT")
    found = np.concatenate(list(stream.blocks(path, sample_rate=RATE)))
    np.testing.assert_allclose(np.abs(found[4 * RATE :]), np.abs(clip[4 * RATE :]), atol=0.01)


def test_a_constant_offset_counts_as_silence_in_a_stream(wav: WriteWav) -> None:
    noise = np.random.default_rng(0).normal(0, 1e-4, 5 * RATE)
    path = wav(samples=noise + 0.02, subtype="FLOAT")
    assert not _active(np.concatenate(list(stream.blocks(path, sample_rate=RATE)))).any()


def test_sound_further_below_the_peak_than_the_range_counts_as_silence() -> None:
    room = np.random.default_rng(0).normal(0, 0.002, RATE).astype(np.float32)  # -54 dB
    samples = np.concatenate([room, voice(1.0), room, np.zeros(RATE, np.float32)])
    assert stream.active(samples, RATE)[0][:50].all()
    found, frame = stream.active(samples, RATE, 30.0)
    assert frame == 320
    assert (found.argmax(), found.sum()) == pytest.approx((50, 50), abs=2)
