"""Stream a recording of any length in blocks at the working rate, and detect sound in them, in constant memory."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soxr

from spectro.audio.container import check_duration, check_length, opened
from spectro.audio.highpass import HighPass
from spectro.audio.recording import FRAME_S, SILENT_DB, Downmix, Waveform, check_values, frame_levels, read_block
from spectro.audio.source import Source, name_of
from spectro.errors import AudioError

HISTORY_S = 30.0
FLOOR_MARGIN_DB, LOUD_MARGIN_DB = 12.0, 20.0
BLOCK_S = 1.0
LEAST_SOUND_S = 0.25


def blocks(
    source: Source, *, sample_rate: int, channel: int | None = None, max_duration_s: float | None = None
) -> Iterator[Waveform]:
    """Yield a recording in blocks of about a second, mixed down to one channel and cleaned as in `recording.read`.

    Args:
        source: a path, an address, or a seekable binary file.
        sample_rate: target sampling rate, in Hz; soxr resamples, at its high quality.
        channel: use only this channel, from 0; None for all of them, see `recording.Downmix`.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Yields:
        float32 arrays of shape (samples,), full scale at -1 and 1, all finite.

    Raises:
        AudioError: the recording cannot be used, or not from some time on; the message gives the time.
    """
    name = name_of(source)
    done = 0
    with opened(source, max_duration_s=max_duration_s) as file:
        rate = int(file.samplerate)
        cleaner = Cleaner(rate, sample_rate, channel=channel)
        try:
            while len(block := read_block(file, round(BLOCK_S * rate))):
                check_values(block, f"{name}: after {done / rate:.1f} s")
                done += len(block)
                check_duration(done, file, name, max_duration_s)
                yield cleaner.add(block)
            check_length(done, file, name)
        except AudioError:
            yield cleaner.finish()
            raise
        yield cleaner.finish()
    if not done:
        raise AudioError(f"{name}: holds no samples")


class Cleaner:
    """Converts consecutive blocks to one channel at the working rate, without frequencies below the voice.

    Args:
        rate: rate of the blocks, in Hz.
        wanted: target rate, in Hz.
        channel: use only this channel, from 0; None for all of them.
    """

    def __init__(self, rate: int, wanted: int, *, channel: int | None = None) -> None:
        self._channel, self._mix = channel, Downmix()
        self._resampler, self._highpass = Resampler(rate, wanted), HighPass(wanted)

    def add(self, block: Waveform) -> Waveform:
        """Add a block, float32 of shape (samples, channels), and return what is ready, float32 (samples,)."""
        mono = self._mix.add(block) if self._channel is None else block[:, self._channel]
        return self._highpass.add(self._resampler.add(mono))

    def finish(self) -> Waveform:
        """Return the remaining samples."""
        return np.concatenate([self._highpass.add(self._resampler.finish()), self._highpass.finish()])


class Resampler:
    """Resamples consecutive blocks.

    Args:
        rate: rate of the blocks, in Hz.
        wanted: target rate, in Hz.
    """

    def __init__(self, rate: int, wanted: int) -> None:
        self._stream = None if rate == wanted else soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")

    def add(self, block: Waveform) -> Waveform:
        """Add a block, float32 of shape (samples,), and return the samples that are ready."""
        return self._convert(block, last=False)

    def finish(self) -> Waveform:
        """Return the remaining samples."""
        return self._convert(np.zeros(0, np.float32), last=True)

    def _convert(self, block: Waveform, *, last: bool) -> Waveform:
        if self._stream is None:
            return block
        converted: Waveform = self._stream.resample_chunk(np.ascontiguousarray(block), last=last)
        return converted


class Activity:
    """Classifies frames as sound or silence as they arrive.

    A frame is silent if its level is below `silence_db`, or within the noise. The noise reaches 12 dB above the level
    that a tenth of the last half minute's frames stay below, but at most to 20 dB below the loudest twentieth.

    Args:
        sample_rate: in Hz.
        silence_db: level below which a frame (20 ms) is always silent, in dBFS.
    """

    def __init__(self, sample_rate: int, silence_db: float) -> None:
        self.frame = round(FRAME_S * sample_rate)
        self._silence_db = silence_db
        self._levels: deque[float] = deque(maxlen=round(HISTORY_S / FRAME_S))
        self._rest: Waveform = np.zeros(0, np.float32)

    def add(self, samples: Waveform) -> npt.NDArray[np.bool_]:
        """Add samples, of shape (samples,), and return for each frame that they complete whether it has sound."""
        joined = np.concatenate([self._rest, samples])
        count = len(joined) // self.frame
        frames, self._rest = joined[: count * self.frame].reshape(count, self.frame), joined[count * self.frame :]
        if not count:
            return np.zeros(0, np.bool_)
        return self.judge(frame_levels(frames))

    def judge(self, levels: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return, for each of the next frames, given its level in dB, whether it has sound."""
        self._levels.extend(levels.tolist())
        floor, loud = np.percentile(np.fromiter(self._levels, np.float64), (10, 95))
        sound: npt.NDArray[np.bool_] = levels > max(
            self._silence_db, min(floor + FLOOR_MARGIN_DB, loud - LOUD_MARGIN_DB)
        )
        return sound


def active(samples: Waveform, sample_rate: int, range_db: float | None = None) -> tuple[npt.NDArray[np.bool_], int]:
    """Classify the frames of a waveform as sound or silence.

    Args:
        samples: float32 of shape (samples,).
        sample_rate: in Hz.
        range_db: frames further below the loudest one count as silence, such as room noise next to digital silence,
            unless that leaves less than a quarter of a second of sound. None for no such limit.

    Returns:
        whether each whole frame has sound, and the number of samples per frame.
    """
    activity = Activity(sample_rate, SILENT_DB)
    frame, count = activity.frame, len(samples) // activity.frame
    if not count:
        return np.zeros(0, np.bool_), frame
    levels = frame_levels(samples[: count * frame].reshape(count, frame))
    at_once = round(HISTORY_S / FRAME_S)
    sound = np.concatenate([activity.judge(levels[at : at + at_once]) for at in range(0, count, at_once)])
    if range_db is not None:
        near = sound & (levels > levels.max() - range_db)
        sound = near if near.sum() * FRAME_S >= LEAST_SOUND_S else sound
    return sound, frame
