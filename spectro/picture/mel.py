"""Mel scales and their triangular filters.

Three are in use. `slaney`, librosa's default, is linear to 1 kHz, then logarithmic; its triangles are linear in Hz and
have unit area (M. Slaney, Auditory Toolbox, Technical Report 1998-010). `htk`, torchaudio's default, is
1127 ln(1 + f/700); its triangles are linear in Hz and have height 1. `kaldi`, used by Kaldi and TensorFlow, has the
same scale, but its triangles are linear in mel, with height 1.
"""

from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

MelScale: TypeAlias = Literal["slaney", "htk", "kaldi"]
Mels: TypeAlias = npt.NDArray[np.float64]


def to_mel(frequencies: npt.ArrayLike, scale: MelScale) -> Mels:
    """Convert frequencies in Hz to mel: float64 of the same shape."""
    hertz = np.asarray(frequencies, np.float64)
    if scale != "slaney":
        return 1127 * np.log1p(hertz / 700)
    logarithmic = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, logarithmic)


def to_hertz(mels: npt.ArrayLike, scale: MelScale) -> Mels:
    """Convert mel to frequencies in Hz: float64 of the same shape."""
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
        bands: number of filters.
        fmin: lower edge of the lowest filter, in Hz.
        fmax: upper edge of the highest filter, in Hz.
        scale: the mel scale, which sets the filters' positions and shape.
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
