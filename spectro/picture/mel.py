"""Mel scales, and the triangular filters along them.

Three are in use. `slaney`, librosa's default, is linear to 1 kHz, then logarithmic; triangles are straight in Hz and of
unit area (M. Slaney, Auditory Toolbox, Technical Report 1998-010). `htk`, torchaudio's default, is 1127 ln(1 + f/700);
triangles are straight in Hz and 1 high. `kaldi`, Kaldi's and TensorFlow's, has the same scale, but its triangles are
straight in mel, and 1 high.
"""

from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

MelScale: TypeAlias = Literal["slaney", "htk", "kaldi"]
Mels: TypeAlias = npt.NDArray[np.float64]


def to_mel(frequencies: npt.ArrayLike, scale: MelScale) -> Mels:
    """Return frequencies in Hz as mel: float64 of the same shape."""
    hertz = np.asarray(frequencies, np.float64)
    if scale != "slaney":
        return 1127 * np.log1p(hertz / 700)
    logarithmic = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, logarithmic)


def to_hertz(mels: npt.ArrayLike, scale: MelScale) -> Mels:
    """Return mel as frequencies in Hz: float64 of the same shape."""
    mel = np.asarray(mels, np.float64)
    if scale != "slaney":
        return 700 * np.expm1(mel / 1127)
    logarithmic = 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27)
    return np.where(mel < 15, 200 * mel / 3, logarithmic)


@lru_cache(maxsize=16)
def filterbank(
    *, sample_rate: int, n_fft: int, bands: int, fmin: float, fmax: float, scale: MelScale = "slaney"
) -> npt.NDArray[np.float32]:
    """Return triangular mel filters, float32 of shape (bands, 1 + n_fft // 2).

    Args:
        sample_rate: in Hz.
        n_fft: size of the Fourier transform, in samples.
        bands: how many filters.
        fmin: lower edge of the lowest, in Hz.
        fmax: upper edge of the highest, in Hz.
        scale: where they stand, and of which form they are.
    """
    lowest, highest = to_mel([fmin, fmax], scale)
    edges = np.linspace(lowest, highest, bands + 2)
    bins = np.linspace(0, sample_rate / 2, 1 + n_fft // 2)
    if scale == "kaldi":
        bins = to_mel(bins, scale)
    else:
        edges = to_hertz(edges, scale)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    if scale == "slaney":
        triangles = triangles * (2 / (edges[2:] - edges[:-2]))[:, None]
    filters: npt.NDArray[np.float32] = triangles.astype(np.float32)
    return filters
