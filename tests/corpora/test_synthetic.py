from pathlib import Path

import numpy as np
import pytest

from spectro.corpora.datasets import synthetic
from spectro.corpora.datasets.synthetic import PROSODY, SAMPLE_RATE, synthesise, voice
from spectro.corpora.registry import scan
from tests.conftest import pitch_of


def test_a_clip_is_deterministic_and_differs_from_others() -> None:
    clip = synthesise(1, "happy", 0, 0)
    np.testing.assert_array_equal(synthesise(1, "happy", 0, 0), clip)
    for other in (synthesise(2, "happy", 0, 0), synthesise(1, "sad", 0, 0), synthesise(1, "happy", 0, 1)):
        assert len(other) != len(clip) or not np.allclose(other, clip)


def test_pitch_loudness_and_tempo_follow_speaker_and_emotion() -> None:
    assert {voice(s).gender for s in (1, 3, 5)} == {"male"}
    man, woman = pitch_of(synthesise(1, "neutral", 1, 0)), pitch_of(synthesise(2, "neutral", 1, 0))
    assert woman > 1.3 * man
    assert pitch_of(synthesise(1, "fearful", 1, 0)) > 1.2 * man
    loudness = {emotion: np.std(synthesise(3, emotion, 1, 0)) for emotion in PROSODY}
    assert loudness["angry"] > 2 * loudness["sad"]
    assert len(synthesise(3, "sad", 1, 0)) > 1.3 * len(synthesise(3, "fearful", 1, 0))


def test_clips_are_audible_and_within_full_scale() -> None:
    for speaker, emotion in ((4, "angry"), (9, "sad")):
        clip = synthesise(speaker, emotion, 2, 1)
        assert clip.dtype == np.float32
        assert 1.0 < len(clip) / SAMPLE_RATE < 3.5
        assert 0.01 < np.abs(clip).max() <= 1


def test_the_corpus_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SPEAKERS", 2)
    monkeypatch.setattr(synthetic, "SENTENCES", 1)
    synthetic.write(tmp_path)
    found = scan("synthetic", tmp_path)
    assert len(found.clips) == 2 * 6 * 1 * 2
    assert found.clips.groupby("speaker")["emotion"].nunique().tolist() == [6, 6]
    monkeypatch.setattr(synthetic, "synthesise", lambda *_: pytest.fail("made again"))
    synthetic.write(tmp_path)
