from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spectro.audio import recording
from spectro.audio.highpass import highpass
from spectro.errors import AudioError, PredictionError
from spectro.picture import spectrogram
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import SILENCE, Segment, timeline
from spectro.predict.timeline.windows import Cutter, Window, WindowSettings, render_samples
from tests.conftest import RATE, SMALL, World, WriteWav, voice

LENGTH = SMALL.width * SMALL.hop_length  # length of a window, in samples: 1.6 s


@pytest.fixture(scope="module")
def predictor(world: World) -> Predictor:
    return Predictor(world.checkpoint, device="cpu")


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def cut(samples: np.ndarray, settings: WindowSettings | None = None, block: int = RATE) -> list[Window]:
    cutter = Cutter(SMALL, settings or WindowSettings())
    found = [window for at in range(0, len(samples), block) for window in cutter.add(samples[at : at + block])]
    return [*found, *cutter.finish()]


def test_windows_lie_within_utterances_and_cover_them() -> None:
    samples = np.concatenate([quiet(1), voice(1.0), quiet(1), voice(4.0), quiet(0.2), voice(0.3), quiet(1), voice(0.1)])
    found = cut(samples)
    assert [window.utterance for window in found] == [0, *[1] * (len(found) - 1)]
    first, rest = found[0], found[1:]
    assert (first.start, first.stop) == pytest.approx((RATE, 2 * RATE), abs=320)
    assert rest[0].start == pytest.approx(3 * RATE, abs=320)
    assert rest[-1].stop == pytest.approx(7.5 * RATE, abs=320)  # a pause of 0.2 s does not end an utterance
    assert {len(window.samples) for window in rest} == {LENGTH}
    steps = np.diff([window.start for window in rest])
    assert set(steps[:-1]) == {RATE // 2}
    assert 0 < steps[-1] <= RATE // 2
    for window in found:
        np.testing.assert_array_equal(window.samples, samples[window.start : window.stop])


@pytest.mark.parametrize("block", [100, 5_000, 10**6])
def test_windows_do_not_depend_on_the_block_size(block: int) -> None:
    samples = np.concatenate([quiet(0.7), voice(5.3), quiet(0.9), voice(0.8)])
    # the noise level is estimated from the samples so far, and there is no noise here
    assert [(one.start, one.stop) for one in cut(samples, block=block)] == [
        (one.start, one.stop) for one in cut(samples)
    ]


def test_memory_does_not_grow_with_the_length_of_the_recording() -> None:
    cutter = Cutter(SMALL, WindowSettings())
    kept = []
    for second in range(400):
        block = voice(1.0) if second % 40 < 30 else quiet(1)
        for _ in cutter.add(block):
            pass
        kept.append(len(cutter._kept))
    assert max(kept) < 3 * LENGTH
    assert cutter.samples_seen == 400 * RATE


def test_the_current_window_holds_the_newest_samples_and_is_none_in_silence() -> None:
    cutter = Cutter(SMALL, WindowSettings())
    samples = voice(5.0)
    assert cutter.current() is None
    list(cutter.add(samples))
    now = cutter.current()
    assert now is not None
    np.testing.assert_array_equal(now.samples, samples[-LENGTH:])
    list(cutter.add(quiet(1)))
    assert cutter.current() is None


def test_a_timeline_has_no_gaps_and_marks_silence(predictor: Predictor, wav: WriteWav) -> None:
    parts = [quiet(1), voice(2.0), quiet(1.5), voice(3.0, pitch=250), quiet(0.5)]
    found = list(predictor.timeline(wav(samples=np.concatenate(parts))))
    assert found[0].start_s == 0
    assert found[-1].end_s == pytest.approx(8.0, abs=0.01)
    for one, following in pairwise(found):
        assert one.end_s == following.start_s
        assert {one.label, following.label} != {SILENCE}
    silent = [(one.start_s, one.end_s) for one in found if one.label == SILENCE]
    assert silent == [pytest.approx(pair, abs=0.03) for pair in ((0, 1), (3, 4.5), (7.5, 8))]
    for one in found:
        assert (one.confidence is None) == (one.label == SILENCE)
        assert one.label in (*predictor.labels, SILENCE)
        if one.label != SILENCE:
            assert sum(one.probabilities.values()) == pytest.approx(1)
            assert one.label == max(one.probabilities, key=one.probabilities.__getitem__)


def test_an_utterance_amid_silence_has_the_same_probabilities_as_its_clip(predictor: Predictor, wav: WriteWav) -> None:
    step = round(recording.TRIM_HOP_S * RATE)  # trimming is in whole steps, whatever comes before
    fading = voice(1.2) * np.linspace(0.01, 1, round(1.2 * RATE), dtype=np.float32) ** 4
    clip = wav("clip.wav", fading, subtype="FLOAT")
    around = np.concatenate([np.zeros(100 * step, np.float32), fading, quiet(1)])
    segments = list(predictor.timeline(wav("around.wav", around, subtype="FLOAT"), WindowSettings(smooth_s=0)))
    assert [one.label == SILENCE for one in segments] == [True, False, True]
    alone = predictor.predict_wav(clip).probabilities
    assert segments[1].probabilities == pytest.approx(alone, abs=0.01)
    untrimmed = predictor.scores([spectrogram.render(fading, SMALL)]).probabilities[0]
    assert np.abs(untrimmed - list(alone.values())).max() > 0.02  # trimming makes a difference


def test_window_probabilities_are_averages_weighted_by_distance_in_time(predictor: Predictor, wav: WriteWav) -> None:
    path = wav(samples=np.concatenate([voice(6.0, pitch=pitch) for pitch in (120, 250)]))
    samples = highpass(soundfile.read(path, dtype="float32")[0], RATE)
    windows = cut(samples)
    alone = predictor.scores([render_samples(window.samples, SMALL) for window in windows]).probabilities
    middles = np.array([(window.start + window.stop) / 2 / RATE for window in windows])
    weights = np.maximum(0, 1 - np.abs(middles[:, None] - middles[None]) / 2.0)
    expected = weights @ alone / weights.sum(1, keepdims=True)
    segments = list(timeline(predictor, path, WindowSettings(smooth_s=2.0), batch_size=3))
    labels = [predictor.labels[place] for place in expected.argmax(1)]
    changes = [0, *[place for place in range(1, len(labels)) if labels[place] != labels[place - 1]], len(labels)]
    assert [segment.label for segment in segments] == [labels[place] for place in changes[:-1]]
    for segment, begin, end in zip(segments, changes, changes[1:], strict=False):
        np.testing.assert_allclose(list(segment.probabilities.values()), expected[begin:end].mean(0), atol=1e-6)
        if begin:
            assert segment.start_s == pytest.approx((middles[begin - 1] + middles[begin]) / 2, abs=0.001)


def test_split_channels_gives_each_channel_its_own_timeline(predictor: Predictor, wav: WriteWav) -> None:
    left, right = np.concatenate([voice(2.0), quiet(2)]), np.concatenate([quiet(2), voice(2.0, pitch=240)])
    path = wav(samples=np.stack([left, right], axis=1))
    found = list(timeline(predictor, path, split_channels=True))
    for channel, mono in enumerate((left, right)):
        alone = list(timeline(predictor, wav(f"{channel}.wav", mono)))
        party = [one for one in found if one.channel == channel]
        assert [(one.start_s, one.end_s, one.label) for one in party] == [
            (one.start_s, one.end_s, one.label) for one in alone
        ]
    assert {one.channel for one in timeline(predictor, path)} == {None}


def test_segments_before_an_invalid_sample_are_kept(predictor: Predictor, wav: WriteWav) -> None:
    samples = np.concatenate([voice(2.0), quiet(1), voice(3.0)])
    samples[5 * RATE + 100] = np.inf
    segments: list[Segment] = []
    with pytest.raises(AudioError, match=r"after 5\.0 s"):
        for segment in timeline(predictor, wav(samples=samples, subtype="FLOAT")):
            segments.append(segment)
    assert segments[-1].end_s == pytest.approx(5, abs=0.05)


def test_a_prediction_below_the_margin_is_labelled_unsure(predictor: Predictor, wav: WriteWav) -> None:
    path = wav(samples=voice(2.0))
    assert [one.label for one in timeline(predictor.with_margin(1.0), path)] == ["unsure"]
    assert predictor.with_margin(1.0).predict_wav(path).label == "unsure"
    assert predictor.predict_wav(path).label in predictor.labels
    with pytest.raises(PredictionError, match="between 0 and 1"):
        predictor.with_margin(2.0)


@pytest.mark.parametrize("wrong", [{"hop_s": 0}, {"smooth_s": -1}, {"silence_db": 3}, {"min_pause_s": 1e6}])
def test_out_of_range_window_settings_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(PredictionError, match=next(iter(wrong))):
        WindowSettings(**wrong)


def test_a_silent_recording_is_a_single_silence_segment(predictor: Predictor, wav: WriteWav, tmp_path: Path) -> None:
    found = list(timeline(predictor, wav(samples=quiet(3))))
    assert [(one.label, one.start_s, one.end_s) for one in found] == [(SILENCE, 0, 3)]
    (tmp_path / "text.wav").write_text("text")
    with pytest.raises(AudioError, match=r"text\.wav"):
        list(timeline(predictor, tmp_path / "text.wav"))
