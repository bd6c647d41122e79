"""Explanations as the service returns them: the picture and its map as PNGs, and their axes."""

import io
from base64 import b64encode
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import PIL.Image
import soundfile

from spectro.audio import stream
from spectro.audio.source import name_of
from spectro.errors import AudioError, AudioLengthError
from spectro.picture.frontend import band_of
from spectro.picture.spec import Image, SpectrogramSpec, colormap_table
from spectro.predict.explain import FREQUENCIES, Explanation, explain, moved
from spectro.predict.predictor import Predictor
from spectro.serve.schemas import ExplanationAnswer, TickAnswer


def look(
    predictor: Predictor,
    source: BinaryIO,
    *,
    label: str | None,
    start_s: float,
    end_s: float | None,
    max_duration_s: float,
    on_block: Callable[[], object],
) -> Explanation:
    """Explain a recording, or a part of a longer one; times count from the start of the whole recording.

    Args:
        predictor: the network.
        source: a seekable binary file.
        label: the label to explain; None for the most likely one.
        start_s: start of the part, in seconds.
        end_s: its end, in seconds; None for the end of the recording.
        max_duration_s: longest recording that a part may come from, in seconds.
        on_block: called about once per second of audio read; an exception from it stops the work.

    Raises:
        AudioError: the recording or the part cannot be used.
        PredictionError: the backbone has no feature map over time and frequency.
        CheckpointError: the checkpoint from which the network was exported is missing.
    """
    if not start_s and end_s is None:
        return explain(predictor, source, label=label)
    stretch = _stretch(predictor, source, start_s, end_s, max_duration_s, on_block)
    on_block()
    return moved(explain(predictor, stretch, label=label), start_s)


def answer(found: Explanation) -> ExplanationAnswer:
    """Return an explanation as the answer of the service."""
    said, spec = found.prediction, found.spec
    rows = {one: round(spec.height - 1 - band_of(one, spec), 3) for one in FREQUENCIES}
    return ExplanationAnswer(
        label=said.label,
        confidence=said.confidence,
        probabilities=said.probabilities,
        speech=said.speech,
        about=found.label,
        picture=_png(found.picture),
        heat=_png(np.rint(255 * found.heat).astype(np.uint8)),
        width=spec.width,
        height=spec.height,
        start_s=round(found.start_s, 6),
        step_s=spec.hop_length / spec.sample_rate,
        columns=columns(found.picture, spec),
        frequencies=[TickAnswer(hz=one, row=row) for one, row in rows.items() if 0 <= row < spec.height],
    )


def columns(picture: Image, spec: SpectrogramSpec) -> tuple[int, int]:
    """Return the first and the last column that hold sound; the others are padding, which is black.

    Args:
        picture: uint8 of shape `spec.shape`.
        spec: how it was rendered.
    """
    black = colormap_table(spec.colormap)[0] if spec.channels == "colormap" else 0
    other = picture != black
    filled = np.flatnonzero(other.any(axis=tuple(axis for axis in range(other.ndim) if axis != 1)))
    return (int(filled[0]), int(filled[-1])) if len(filled) else (0, spec.width - 1)


def _stretch(
    predictor: Predictor,
    source: BinaryIO,
    start_s: float,
    end_s: float | None,
    max_duration_s: float,
    on_block: Callable[[], object],
) -> BinaryIO:
    """Return a part of a recording as a WAV file at the working rate, without reading beyond the part."""
    name, limit_s, rate = name_of(source), predictor.max_duration_s, predictor.checkpoint.spec.sample_rate
    if end_s is not None and end_s <= start_s:
        raise AudioError(f"{name}: end_s ({end_s:g} s) must be later than start_s ({start_s:g} s)")
    start, done, kept = round(start_s * rate), 0, [np.zeros(0, np.float32)]
    stop = None if end_s is None else round(end_s * rate)
    for block in stream.blocks(source, sample_rate=rate, max_duration_s=max_duration_s):
        on_block()
        kept.append(block[max(0, start - done) : None if stop is None else max(0, stop - done)])
        done += len(block)
        if limit_s is not None and sum(map(len, kept)) > limit_s * rate:
            raise AudioLengthError(f"{name}: the part is longer than the limit of {limit_s:g} s; choose a shorter one")
        if stop is not None and done >= stop:
            break
    samples = np.concatenate(kept)
    if not len(samples):
        raise AudioError(f"{name}: ends after {done / rate:.1f} s, before {start_s:g} s")
    part = io.BytesIO()
    soundfile.write(part, samples, rate, format="WAV", subtype="FLOAT")
    part.seek(0)
    return part


def _png(pixels: Image) -> str:
    """Return pixels, uint8 of shape (height, width) or (height, width, 3), as a PNG in base64."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return b64encode(file.getvalue()).decode()
