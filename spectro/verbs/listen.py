"""The listen verb: a microphone, or raw sound on standard input -> a prediction a second."""

import json
import queue
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from spectro.audio.container import MAX_RATE, MIN_RATE
from spectro.audio.recording import check_values
from spectro.audio.stream import Cleaner
from spectro.engines.base import EngineName, Precision, Probabilities
from spectro.errors import PredictionError
from spectro.predict.network import Network
from spectro.predict.results import Row, Scorer, mean_scores, verdict
from spectro.predict.timeline.segments import SILENCE
from spectro.predict.timeline.windows import Cutter, WindowSettings, render_samples
from spectro.schema import check_least

Block = npt.NDArray[np.float32]

ENCODINGS: dict[str, np.dtype[Any]] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}
BAR = 20


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """Follow a microphone, or raw sound on standard input, and print a prediction every second.

    For example: ffmpeg -i rtsp://... -f s16le -ac 1 -ar 16000 - | spectro listen --source stdin --json true

    Args:
        source: microphone (extra `listen`), or stdin for headerless raw samples, channels interleaved.
        rate: sampling rate of the source, in Hz.
        channels: number of channels, which are averaged.
        encoding: encoding of stdin: s16 for 16-bit integers, f32 for 32-bit floats, both little-endian.
        microphone: the microphone's number or part of its name; null for the system's default.
        every_s: time between lines, in seconds.
        json: print one JSON object per line instead of text.
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        silence_db: sound below this level is silence, in dBFS.
        min_pause_s: silence of at least this length separates utterances, in seconds.
        half_life_s: time after which earlier sound of the same utterance counts half, in seconds; 0 ignores it.
        min_margin: give the label `unsure` if the two highest probabilities differ by less than this, 0 to 1.
        min_speech: give the label `no speech` if the probability of speech is below this, 0 to 1; 0 turns this off.
        device: cpu, cuda, ...; null uses a GPU if one is available.
        engine: inference engine; auto picks the fastest one installed (onnx and openvino are extras).
        precision: float32, or bfloat16 for more speed (torch, openvino); close calls are computed in float32 either
            way.
    """

    source: Literal["microphone", "stdin"] = "microphone"
    rate: int = 16_000
    channels: int = 1
    encoding: Literal["s16", "f32"] = "s16"
    microphone: str | None = None
    every_s: float = 1.0
    json: bool = False
    checkpoint: Path | None = None
    silence_db: float = WindowSettings.silence_db
    min_pause_s: float = WindowSettings.min_pause_s
    half_life_s: float = 2.0
    min_margin: float = 0.0
    min_speech: float = 0.5
    device: str | None = None
    engine: EngineName = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise PredictionError(f"rate is {self.rate} Hz; it must lie between {MIN_RATE} and {MAX_RATE} Hz")
        if not 1 <= self.channels <= 64:
            raise PredictionError(f"channels is {self.channels}; it must lie between 1 and 64")
        if not 0.1 <= self.every_s <= 60:
            raise PredictionError(f"every_s is {self.every_s}; it must lie between 0.1 and 60 s")
        check_least(self, PredictionError, half_life_s=0)
        _ = self.windows  # which checks its own settings

    @property
    def windows(self) -> WindowSettings:
        """How utterances are separated."""
        return WindowSettings(silence_db=self.silence_db, min_pause_s=self.min_pause_s)


def run(settings: ListenSettings) -> int:
    """Run the verb until the sound ends or it is interrupted; returns its exit code."""
    predictor = Network.of(settings).predictor()
    blocks = _microphone(settings) if settings.source == "microphone" else _raw(sys.stdin.buffer, settings)
    try:
        for row in listen(predictor, blocks, settings):
            print(json.dumps(row.record(predictor.labels)) if settings.json else _line(row), flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def listen(scorer: Scorer, blocks: Iterable[Block], settings: ListenSettings) -> Iterator[Row]:
    """Yield a row for every `every_s` of sound, on the utterance in progress at its end.

    Args:
        scorer: a `Predictor`.
        blocks: float32 arrays of shape (samples, channels) at `settings.rate`, of any length.
        settings: the verb's settings.

    Raises:
        AudioError: samples are not finite.
    """
    spec = scorer.checkpoint.spec
    cleaner = Cleaner(settings.rate, spec.sample_rate)
    raw = settings.source == "stdin"
    cutter = Cutter(spec, settings.windows)
    keep = 0.5 ** (settings.every_s / settings.half_life_s) if settings.half_life_s else 0.0
    average: Probabilities = np.zeros(0)
    utterance = -1
    for number, block in enumerate(_even(blocks, round(settings.every_s * settings.rate))):
        check_values(block, f"{settings.source} (is the encoding {settings.encoding}?)" if raw else settings.source)
        ended = list(cutter.add(cleaner.add(block)))
        window = cutter.current() or (ended[-1] if ended else None)
        start_s, end_s = (round(second * settings.every_s, 3) for second in (number, number + 1))
        if window is None:
            yield Row(path=settings.source, start_s=start_s, end_s=end_s, label=SILENCE)
            continue
        scores = scorer.scores([render_samples(window.samples, spec)])
        scored = np.append(scores.probabilities[0], np.nan if scores.speech is None else scores.speech[0])
        average = scored if window.utterance != utterance else keep * average + (1 - keep) * scored
        utterance = window.utterance
        yield Row(
            path=settings.source,
            start_s=start_s,
            end_s=end_s,
            **verdict(scorer, mean_scores(average[:-1], average[-1])),
        )


def _even(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """Yield blocks of `size` samples from blocks of any size; an incomplete block at the end is dropped."""
    waiting: list[Block] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)
            for start in range(0, len(joined) - size + 1, size):
                yield joined[start : start + size]
            waiting = [joined[len(joined) // size * size :]]


def _raw(stream: BinaryIO, settings: ListenSettings) -> Iterator[Block]:
    """Yield samples from a stream as they arrive."""
    kind = ENCODINGS[settings.encoding]
    frame, scale = kind.itemsize * settings.channels, 1 / 32768 if settings.encoding == "s16" else 1.0
    rest = b""
    while chunk := stream.read1(65536) if hasattr(stream, "read1") else stream.read(65536):
        data = rest + chunk
        whole = len(data) // frame * frame
        rest = data[whole:]
        samples = np.frombuffer(data[:whole], kind).reshape(-1, settings.channels)
        yield samples.astype(np.float32) * np.float32(scale)


def _microphone(settings: ListenSettings) -> Iterator[Block]:
    """Yield samples from a microphone as they arrive."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise PredictionError(
            f"the microphone needs sounddevice and PortAudio ({error}); install spectro[listen] (and the system's "
            "libportaudio2), or send raw sound with --source stdin"
        ) from error
    blocks: queue.SimpleQueue[Block] = queue.SimpleQueue()
    name: Any = settings.microphone
    try:
        with sounddevice.InputStream(
            samplerate=settings.rate,
            channels=settings.channels,
            device=int(name) if name and name.isdigit() else name,
            dtype="float32",
            callback=lambda data, *_: blocks.put(data.copy()),
        ):
            while True:
                yield blocks.get()
    except (sounddevice.PortAudioError, ValueError) as error:
        raise PredictionError(f"the microphone cannot be used ({error}); name another with --microphone") from error


def _line(row: Row) -> str:
    if row.confidence is None:
        return f"{row.end_s:8.1f} s  {row.label}"
    bar = "█" * round(BAR * row.confidence)
    return f"{row.end_s:8.1f} s  {row.label:<12} {row.confidence:.2f}  {bar}"
