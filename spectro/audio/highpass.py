"""Remove frequencies below the voice: the DC offset of a cheap sound card, drift, and rumble.

A DC offset is removed completely; 1 Hz falls by 38 dB, 4 Hz by 14 dB, 10 Hz by 2 dB, and from 20 Hz up nothing changes
by more than 0.1 dB. Mains hum (50 or 60 Hz) stays, since a man's voice goes nearly as low.
"""

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]

STEP_S = 0.01
REACH = 6  # steps on either side over which the baseline is averaged
KERNEL = np.hanning(2 * REACH + 3)[1:-1].astype(np.float32)
KERNEL /= KERNEL.sum()
CONTEXT = REACH + 2  # steps on either side of a piece that its baseline depends on


def highpass(samples: Waveform, sample_rate: int) -> Waveform:
    """Return a recording without its baseline.

    The baseline connects points 10 ms apart, each a weighted mean of the 20 ms around it, smoothed with a Hann window
    of 140 ms: a linear-phase FIR filter.

    Args:
        samples: float32 of shape (samples,).
        sample_rate: in Hz.

    Returns:
        float32 of shape (samples,).
    """
    step = round(STEP_S * sample_rate)
    count = len(samples) // step
    if count < 2:
        return samples - samples.mean() if len(samples) else samples
    points = _points(samples[: count * step].reshape(count, step))
    before, after = points[:REACH].mean(), points[-REACH:].mean()  # there is no sound beyond the ends
    points = np.pad(points, REACH, constant_values=(before, after))
    nodes = np.convolve(points, KERNEL, mode="valid")
    nodes = np.concatenate([nodes[:1], nodes, nodes[-1:]])  # from sample 0 to sample `count * step`
    slope = np.arange(step, dtype=np.float32) / np.float32(step)
    altered = np.empty_like(samples)
    pieces = altered[: count * step].reshape(count, step)
    np.multiply(np.diff(nodes)[:, None], slope, out=pieces)
    pieces += nodes[:-1, None]
    np.subtract(samples[: count * step].reshape(count, step), pieces, out=pieces)
    np.subtract(samples[count * step :], nodes[-1], out=altered[count * step :])
    return altered


def _points(pieces: Waveform) -> Waveform:
    """Return the triangle-weighted mean around each border between two of `count` pieces: float32 (count - 1)."""
    step = pieces.shape[1]
    rising = (np.arange(step, dtype=np.float32) + np.float32(0.5)) / np.float32(step**2)
    halves = pieces @ np.stack([rising, rising[::-1]], axis=1)
    points: Waveform = halves[:-1, 0] + halves[1:, 1]
    return points


class HighPass:
    """Removes the baseline from consecutive blocks; the result does not depend on where they are cut.

    Args:
        sample_rate: in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._step = sample_rate, round(STEP_S * sample_rate)
        self._kept: Waveform = np.zeros(0, np.float32)
        self._given = 0  # how many samples of `_kept` have been returned

    def add(self, block: Waveform) -> Waveform:
        """Add a block, float32 of shape (samples,), and return the samples that are ready."""
        self._kept = np.concatenate([self._kept, block])
        ready = (len(self._kept) // self._step - CONTEXT) * self._step
        return self._give(ready) if ready > self._given else np.zeros(0, np.float32)

    def finish(self) -> Waveform:
        """Return the remaining samples."""
        return self._give(len(self._kept))

    def _give(self, stop: int) -> Waveform:
        found = highpass(self._kept, self._rate)[self._given : stop]
        first = max(0, stop // self._step - CONTEXT) * self._step  # stays on the grid of points
        self._kept, self._given = self._kept[first:], stop - first
        return found
