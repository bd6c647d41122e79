"""Recordings from pipes, dead recorders and crossed wires: each gets the same result as the clean clip."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spectro.corpora.datasets import synthetic
from spectro.errors import AudioError
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import SILENCE
from tests.conftest import RATE, World

CLIP = (0.5 * synthetic.synthesise(1, "happy", 0, 0) / np.abs(synthetic.synthesise(1, "happy", 0, 0)).max())[: 2 * RATE]


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _piped(size: int) -> bytes:
    content = bytearray(_wav(CLIP))
    place = content.index(b"data") + 4
    content[4:8], content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF), struct.pack("<I", size)
    return bytes(content)


def _piped_flac() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, CLIP, RATE, format="FLAC", subtype="PCM_16")
    content = bytearray(buffer.getvalue())
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    return bytes(content)


def _around(pause: np.ndarray) -> bytes:
    return _wav(np.concatenate([CLIP, pause, CLIP]))


SAME: dict[str, Callable[[], bytes]] = {
    "a pipe's 0x7ffff000": lambda: _piped(0x7FFFF000),
    "a pipe's 0x7fffff00": lambda: _piped(0x7FFFFF00),
    "a pipe's 0xffffffdb": lambda: _piped(0xFFFFFFFF - 36),
    "a pipe's 0x7fffffd3": lambda: _piped(0x7FFFFFFF - 44),
    "a dead recorder's 0": lambda: _piped(0),
    "a FLAC from a pipe": _piped_flac,
    "a constant": lambda: _wav(CLIP + 0.02),
    "opposite channels": lambda: _wav(np.stack([CLIP, -CLIP], axis=1)),
    "opposite channels and noise": lambda: _wav(
        np.stack([CLIP, -CLIP], axis=1) + np.random.default_rng(0).normal(0, 1e-4, (len(CLIP), 2))
    ),
    "a pause": lambda: _around(np.zeros(10 * RATE)),
    "a pause that is not quite silent": lambda: _around(np.random.default_rng(0).normal(0, 1e-4, 10 * RATE)),
}


@pytest.fixture(scope="module")
def predictor(world: World) -> Predictor:
    return Predictor(world.checkpoint, device="cpu")


@pytest.mark.parametrize("case", SAME)
def test_a_flawed_recording_renders_and_segments_like_the_clean_clip(
    predictor: Predictor, tmp_path: Path, case: str
) -> None:
    path, clean = tmp_path / "case.wav", tmp_path / "clean.wav"
    clean.write_bytes(_wav(CLIP))
    path.write_bytes(SAME[case]())
    expected, found = predictor.render(clean).astype(float), predictor.render(path).astype(float)
    assert np.abs(found - expected).mean() < 6  # of 255; a picture of a pause differs by 80
    of_clean, segments = ([one for one in predictor.timeline(each) if one.label != SILENCE] for each in (clean, path))
    if "pause" in case:
        later = [one for one in segments if one.start_s > 10]
        segments = [one for one in segments if one.start_s < 10]
        assert later[0].start_s - segments[0].start_s == pytest.approx(10 + len(CLIP) / RATE, abs=0.25)
    assert (segments[0].start_s, segments[-1].end_s) == pytest.approx(
        (of_clean[0].start_s, of_clean[-1].end_s), abs=0.3
    )


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_a_dc_offset_alone_or_with_faint_noise_counts_as_silence(
    predictor: Predictor, tmp_path: Path, level: float
) -> None:
    path = tmp_path / "silence.wav"
    path.write_bytes(_wav(0.02 + np.random.default_rng(0).normal(0, level, 5 * RATE)))
    with pytest.raises(AudioError, match="is silent"):
        predictor.predict_wav(path)
    assert [segment.label for segment in predictor.timeline(path)] == [SILENCE]


def _hiss(seconds: float, level_db: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 10 ** (level_db / 20), round(seconds * RATE))


def _with(samples: np.ndarray, sound: np.ndarray) -> np.ndarray:
    samples[len(samples) // 2 :][: len(sound)] += sound
    return samples


SPARSE: dict[str, Callable[[], np.ndarray]] = {
    "hiss with a bump": lambda: _with(_hiss(8, -66), _hiss(0.02, -60)),
    "a click in the noise": lambda: _with(_hiss(20, -70), np.full(8, 0.01)),
    "a loud click": lambda: _with(_hiss(20, -70), np.full(8, 0.1)),
}


@pytest.mark.parametrize("case", SPARSE)
def test_a_nearly_silent_recording_gets_no_emotion_label(predictor: Predictor, tmp_path: Path, case: str) -> None:
    path = tmp_path / "sparse.wav"
    soundfile.write(path, SPARSE[case](), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"sparse\.wav: is (silent but for|too short)"):
        predictor.predict_wav(path)
    assert [segment.label for segment in predictor.timeline(path)] == [SILENCE]
