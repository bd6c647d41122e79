"""A recording of any length -> blocks at the working rate, and where in them somebody speaks; memory stays the same."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soxr

from spectro.errors import AudioError, AudioFormatError, AudioLengthError
from spectro.signal.audio import Source, Waveform, check_values, name_of, opened, read_block

FRAME_S = 0.02
HISTORY_S = 30.0
FLOOR_MARGIN_DB, LOUD_MARGIN_DB = 12.0, 20.0
BLOCK_S = 1.0


def blocks(
    source: Source, *, sample_rate: int, channel: int | None = None, max_duration_s: float | None = None
) -> Iterator[Waveform]:
    """Yield a recording in blocks of about a second.

    Args:
        source: a path, or a seekable binary file.
        sample_rate: wanted sampling rate, in Hz; soxr converts, at its high quality.
        channel: take this channel alone, from 0; None for the mean of all.
        max_duration_s: longest duration accepted, in seconds; None for no limit.

    Yields:
        float32 arrays of shape (samples,), full scale at -1 and 1, all finite.

    Raises:
        AudioError: the recording cannot be used, or not from some moment on; the text says from when.
    """
    name = name_of(source)
    done = 0
    with opened(source, max_duration_s=max_duration_s) as file:
        rate = int(file.samplerate)
        resampler = Resampler(rate, sample_rate)
        while len(block := read_block(file, round(BLOCK_S * rate))):
            check_values(block, f"{name}: after {done / rate:.1f} s")
            done += len(block)
            if max_duration_s is not None and done > max_duration_s * rate:
                raise AudioLengthError(f"{name}: lasts more than the limit of {max_duration_s:g} s; raise the limit")
            yield resampler.add(block.mean(axis=1, dtype=np.float32) if channel is None else block[:, channel])
        if done < file.frames < 2**62:  # pipes promise more
            raise AudioFormatError(f"{name}: breaks off after {done / rate:.1f} of {file.frames / rate:.1f} s")
        yield resampler.finish()
    if not done:
        raise AudioError(f"{name}: holds no samples")


class Resampler:
    """Converts the rate of blocks that follow each other.

    Args:
        rate: their rate, in Hz.
        wanted: the wanted rate, in Hz.
    """

    def __init__(self, rate: int, wanted: int) -> None:
        self._stream = None if rate == wanted else soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")

    def add(self, block: Waveform) -> Waveform:
        """Return what is ready once a block, float32 of shape (samples,), is added."""
        return self._convert(block, last=False)

    def finish(self) -> Waveform:
        """Return what is left at the end."""
        return self._convert(np.zeros(0, np.float32), last=True)

    def _convert(self, block: Waveform, *, last: bool) -> Waveform:
        if self._stream is None:
            return block
        converted: Waveform = self._stream.resample_chunk(np.ascontiguousarray(block), last=last)
        return converted


class Activity:
    """Tells frames of sound from frames of silence as they come.

    A frame is silent if its level lies below `silence_db`, or in the noise: less than 12 dB above the level that a
    tenth of the last half minute's frames stay below, where that is at least 20 dB below the loudest twentieth.

    Args:
        sample_rate: in Hz.
        silence_db: what is silent in any case, as the level of a frame (20 ms) in dB of full scale.
    """

    def __init__(self, sample_rate: int, silence_db: float) -> None:
        self.frame = round(FRAME_S * sample_rate)
        self._silence_db = silence_db
        self._levels: deque[float] = deque(maxlen=round(HISTORY_S / FRAME_S))
        self._rest: Waveform = np.zeros(0, np.float32)

    def add(self, samples: Waveform) -> npt.NDArray[np.bool_]:
        """Return, for each whole frame that samples of shape (samples,) complete, whether there is sound."""
        joined = np.concatenate([self._rest, samples])
        count = len(joined) // self.frame
        frames, self._rest = joined[: count * self.frame].reshape(count, self.frame), joined[count * self.frame :]
        if not count:
            return np.zeros(0, np.bool_)
        levels = 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-12)
        self._levels.extend(levels.tolist())
        floor, loud = np.percentile(np.fromiter(self._levels, np.float64), (10, 95))
        sound: npt.NDArray[np.bool_] = levels > max(
            self._silence_db, min(floor + FLOOR_MARGIN_DB, loud - LOUD_MARGIN_DB)
        )
        return sound
