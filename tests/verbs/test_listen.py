import io
import json
import os
import sys
import types

import numpy as np
import pytest

from spectro.audio.highpass import CONTEXT, highpass
from spectro.cli import run_verb
from spectro.errors import AudioError, PredictionError
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import SILENCE
from spectro.predict.timeline.windows import render_samples
from spectro.verbs import listen as live
from spectro.verbs.listen import ListenSettings, listen
from tests.conftest import RATE, SMALL, World, voice

DELAY = CONTEXT * RATE // 100  # delay of the high-pass filter, in samples
SOUND = np.concatenate([np.zeros(2 * RATE), voice(3.0), np.zeros(2 * RATE)]).astype(np.float32)


@pytest.fixture(scope="module")
def predictor(world: World) -> Predictor:
    return Predictor(world.checkpoint, device="cpu")


def blocks(samples: np.ndarray, size: int = 1234) -> list[np.ndarray]:
    return [samples[start : start + size, None] for start in range(0, len(samples), size)]


def test_listen_yields_a_row_per_second_on_the_newest_sound(predictor: Predictor) -> None:
    rows = list(listen(predictor, blocks(SOUND), ListenSettings()))
    assert [(row.start_s, row.end_s) for row in rows] == [(second, second + 1) for second in range(7)]
    # the pause after the utterance ends it within the sixth second
    assert [row.label == SILENCE for row in rows] == [True, True, False, False, False, False, True]
    alone = render_samples(highpass(SOUND, RATE)[2 * RATE : 3 * RATE - DELAY], SMALL)
    np.testing.assert_allclose(
        list(rows[2].probabilities.values()), predictor.scores([alone]).probabilities[0], atol=1e-6
    )


def test_earlier_probabilities_in_an_utterance_decay_with_the_half_life(predictor: Predictor) -> None:
    length = SMALL.width * SMALL.hop_length
    sound = SOUND[2 * RATE : 5 * RATE]
    rows = list(listen(predictor, blocks(sound), ListenSettings(half_life_s=1.0)))
    ends = [second * RATE - DELAY - RATE // 50 for second in (1, 2, 3)]  # the voice fades in the last frame
    shown = [highpass(sound, RATE)[max(0, end - length) : end] for end in ends]
    alone = predictor.scores([render_samples(one, SMALL) for one in shown]).probabilities
    expected = (alone[0] / 2 + alone[1] / 2) / 2 + alone[2] / 2
    np.testing.assert_allclose(list(rows[2].probabilities.values()), expected, atol=1e-6)


def test_listen_accepts_other_sample_rates_and_intervals_but_rejects_nan(predictor: Predictor) -> None:
    fast = np.repeat(SOUND, 3)  # 48 kHz
    rows = list(listen(predictor, blocks(fast), ListenSettings(rate=48_000, every_s=0.5)))
    assert len(rows) == 14
    with pytest.raises(AudioError, match="is the encoding s16"):
        list(listen(predictor, blocks(np.full(RATE, np.nan, np.float32)), ListenSettings(source="stdin")))


@pytest.mark.parametrize(("encoding", "kind", "scale"), [("s16", "<i2", 32767), ("f32", "<f4", 1)])
def test_listen_reads_raw_audio_from_stdin(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    encoding: str,
    kind: str,
    scale: int,
) -> None:
    stereo = np.stack([SOUND, SOUND], axis=1) * scale
    raw = types.SimpleNamespace(buffer=io.BytesIO(stereo.astype(kind).tobytes() + b"\0"))  # plus half a sample
    monkeypatch.setattr(sys, "stdin", raw)
    arguments = ["--source", "stdin", "--channels", "2", "--encoding", encoding, "--checkpoint", str(world.checkpoint)]
    assert run_verb("listen", [*arguments, "--json", "true"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["label"] == SILENCE for row in rows] == [True, True, False, False, False, False, True]
    assert rows[2]["p_" + rows[2]["label"]] == rows[2]["confidence"]


def test_listen_prints_readable_text_with_bars_by_default(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = types.SimpleNamespace(buffer=io.BytesIO((SOUND * 32767).astype("<i2").tobytes()))
    monkeypatch.setattr(sys, "stdin", raw)
    assert run_verb("listen", ["--source", "stdin", "--checkpoint", str(world.checkpoint)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " s  " in line]
    assert lines[0].split() == ["1.0", "s", "silence"]
    assert "█" in lines[2]


def test_samples_are_yielded_as_soon_as_they_arrive() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as sender:
        arriving = live._raw(stream, ListenSettings(source="stdin"))
        sender.write(b"\1\0\2\0\3")
        np.testing.assert_array_equal(next(arriving), np.float32([[1], [2]]) / 32768)
        sender.write(b"\0")
        np.testing.assert_array_equal(next(arriving), np.float32([[3]]) / 32768)


class FakeStream:
    """A stand-in for sounddevice's input stream: a context that passes recorded blocks to a callback."""

    def __init__(self, *, callback: object, device: object, **options: object) -> None:
        if device == "none":
            raise FakeSound.PortAudioError("no such device")
        self.options, self.callback = options, callback

    def __enter__(self) -> "FakeStream":
        for block in blocks(SOUND[: 4 * RATE]):
            self.callback(block, len(block), None, None)  # type: ignore[operator]
        return self

    def __exit__(self, *_: object) -> None: ...


class FakeSound(types.ModuleType):
    class PortAudioError(Exception): ...

    InputStream = FakeStream


def test_listen_reads_the_microphone_and_missing_devices_raise_errors(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound("sounddevice"))
    rows = listen(predictor, live._microphone(ListenSettings()), ListenSettings())
    assert [next(rows).label == SILENCE for _ in range(4)] == [True, True, False, False]
    with pytest.raises(PredictionError, match="name another with --microphone"):
        next(live._microphone(ListenSettings(microphone="none")))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(PredictionError, match="or send raw sound with --source stdin"):
        next(live._microphone(ListenSettings()))


@pytest.mark.parametrize("wrong", [{"rate": 100}, {"channels": 0}, {"every_s": 0.0}])
def test_out_of_range_listen_settings_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(PredictionError, match=next(iter(wrong))):
        ListenSettings(**wrong)  # type: ignore[arg-type]
