"""A spectrogram image <-> a PNG that carries its spec.

The PNG's text holds the spec's fingerprint, the clip's id and, for augmented copies, what was done; so a picture can
be checked before it is believed. One channel is stored as gray, a colour map as a palette (one byte a pixel, decoded
several times as fast as RGB), other pictures as RGB.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from spectro.errors import ImageError, ImageFormatError
from spectro.files import printable
from spectro.signal.spectrogram import Image, SpectrogramSpec, colormap_table

PREFIX = "spectro:"
COMPRESS_LEVEL = 1  # higher levels take several times as long and save a tenth of the size


@dataclass(frozen=True)
class Picture:
    """A PNG's content.

    Args:
        pixels: uint8 array of shape (height, width) or (height, width, 3).
        text: what the PNG says of itself: `spec` (fingerprint), `clip` (clip id) and what else was written.
    """

    pixels: Image
    text: Mapping[str, str] = field(default_factory=dict)


def encode(pixels: Image, spec: SpectrogramSpec, clip_id: str, **text: str) -> bytes:
    """Return the bytes of a PNG of `pixels` that carries the spec's fingerprint, the clip's id and `text`.

    Args:
        pixels: uint8 array of shape `spec.shape`.
        spec: the spec that the pixels were drawn by.
        clip_id: the clip's id.
        text: further entries, ASCII or UTF-8.

    Raises:
        ImageError: `pixels` do not have the spec's shape.
    """
    if pixels.shape != spec.shape or pixels.dtype != np.uint8:
        raise ImageError(f"{clip_id}: pixels are {pixels.dtype} {pixels.shape}; the spec says uint8 {spec.shape}")
    info = PngInfo()
    for key, value in {"spec": spec.fingerprint, "clip": clip_id, **text}.items():
        info.add_itxt(PREFIX + key, value)
    buffer = BytesIO()
    _to_pillow(pixels, spec).save(buffer, "PNG", pnginfo=info, compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def read(source: str | os.PathLike[str] | BinaryIO, spec: SpectrogramSpec | None = None) -> Picture:
    """Read a PNG, and check it against `spec` if one is given.

    Args:
        source: a path or a binary file.
        spec: what the picture must have been drawn by.

    Returns:
        the pixels and the PNG's own text.

    Raises:
        ImageError: not a whole PNG, of another size, or without this spec's fingerprint.
    """
    name = printable(source) if isinstance(source, str | os.PathLike) else "image"
    try:
        with PIL.Image.open(source, formats=["PNG"]) as opened:
            if spec is not None:
                _check_size(opened, spec, name)
            text = _text(opened)
            pixels = np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ImageFormatError(f"{name}: is not a whole PNG ({error})") from error
    if spec is not None:
        _check(pixels, text, spec, name)
    return Picture(pixels, text)


def read_text(path: Path) -> dict[str, str]:
    """Return what a PNG says of itself, without decoding its pixels; empty if it is missing or not a PNG of ours."""
    try:
        with PIL.Image.open(path, formats=["PNG"]) as opened:
            return _text(opened)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return {}


def _text(opened: PIL.Image.Image) -> dict[str, str]:
    """Return our entries among those that stand before the pixels."""
    ours = {str(key): str(value) for key, value in opened.info.items() if str(key).startswith(PREFIX)}
    return {key.removeprefix(PREFIX): value for key, value in ours.items()}


def _check_size(opened: PIL.Image.Image, spec: SpectrogramSpec, name: str) -> None:
    """Refuse a picture of another size before it is decoded."""
    if opened.size != (spec.width, spec.height):
        raise ImageError(
            f"{name}: is {opened.width} x {opened.height} pixels; the spec says {spec.width} x {spec.height}: "
            "render the clip again by this spec"
        )


def _check(pixels: Image, text: Mapping[str, str], spec: SpectrogramSpec, name: str) -> None:
    if text.get("spec") != spec.fingerprint:
        found = text.get("spec", "no spec at all")
        raise ImageError(
            f"{name}: was drawn by {found}, not by the expected spec {spec.fingerprint}: render the clip again"
        )
    if pixels.shape != spec.shape:
        raise ImageError(f"{name}: was saved again with other channels: render the clip again")


def _to_pillow(pixels: Image, spec: SpectrogramSpec) -> PIL.Image.Image:
    if spec.channels != "colormap":
        return PIL.Image.fromarray(pixels)
    table = colormap_table(spec.colormap)
    colours = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    keys, index = np.unique(table.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32), return_index=True)
    picture = PIL.Image.fromarray(index[np.searchsorted(keys, colours)].astype(np.uint8), "P")
    picture.putpalette(table.tobytes())
    return picture
