"""Write and read spectrogram images as PNGs that carry their spec.

The PNG's text holds the spec's fingerprint, the clip's id and, for augmented copies, the steps applied, so that a
picture can be checked before use. One channel is stored as gray, a colour map as a palette (one byte per pixel, decoded
several times as fast as RGB), other pictures as RGB.

This module writes PNGs without Pillow, which tries five filters for each row: that takes as long as all the rest of
rendering. Neighbouring bands are alike, so each row is stored as its difference from the one above. ISA-L deflates the
rows in a third of zlib's time, to files a twelfth larger than Pillow's.
"""

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
from isal import isal_zlib

from spectro.errors import ImageError, ImageFormatError
from spectro.files import printable
from spectro.picture.spec import Image, SpectrogramSpec, colormap_table

PREFIX = "spectro:"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE = 0, 2, 3  # colour types of a PNG
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    PIL.Image.DecompressionBombError,
)  # raised by Pillow
LONGEST_TEXT, MOST_TEXTS = 4_096, 32  # of spectro's entries in a PNG: a compressed one may hold megabytes
FINGERPRINT = re.compile("[0-9a-f]{16}")
UP = 2  # the filter that stores differences from the row above


@dataclass(frozen=True)
class Picture:
    """A PNG's content.

    Args:
        pixels: uint8 array of shape (height, width) or (height, width, 3).
        text: the PNG's text entries: `spec` (fingerprint), `clip` (clip id) and any others that were written.
    """

    pixels: Image
    text: Mapping[str, str] = field(default_factory=dict)


def encode(pixels: Image, spec: SpectrogramSpec, clip_id: str, **text: str) -> bytes:
    """Encode `pixels` as a PNG that carries the spec's fingerprint, the clip's id and `text`.

    Args:
        pixels: uint8 array of shape `spec.shape`.
        spec: the spec that the pixels were rendered with.
        clip_id: the clip's id.
        text: further entries, ASCII or UTF-8.

    Raises:
        ImageError: `pixels` do not have the spec's shape.
    """
    if pixels.shape != spec.shape or pixels.dtype != np.uint8:
        raise ImageError(f"{clip_id}: pixels are {pixels.dtype} {pixels.shape}; the spec says uint8 {spec.shape}")
    entries = {"spec": spec.fingerprint, "clip": clip_id, **text}
    colours = _palette(spec)
    kind = GRAY if pixels.ndim == 2 else RGB if colours is None else PALETTE
    stored = pixels if colours is None else _indices(pixels, colours)
    height, width = spec.shape[:2]
    rows = stored.reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), UP, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    chunks = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        *(_text_chunk(PREFIX + key, value) for key, value in entries.items()),
        *([] if colours is None else [_chunk(b"PLTE", colours.tobytes())]),
        _chunk(b"IDAT", isal_zlib.compress(filtered.data, 1)),
        _chunk(b"IEND", b""),
    ]
    return SIGNATURE + b"".join(chunks)


def read(source: str | os.PathLike[str] | BinaryIO, spec: SpectrogramSpec | None = None) -> Picture:
    """Read a PNG, and check it against `spec` if given.

    Args:
        source: a path or a binary file.
        spec: the spec that the picture must have been rendered with.

    Returns:
        the pixels and the PNG's text entries.

    Raises:
        ImageError: not a whole PNG, of another size, or without this spec's fingerprint.
    """
    name = printable(source) if isinstance(source, str | os.PathLike) else "image"
    try:
        with PIL.Image.open(source, formats=["PNG"]) as opened:
            if spec is not None:
                _check_size(opened, spec, name)
            text = _text(opened, name)
            pixels = np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
    except PIL.UnidentifiedImageError as error:
        raise ImageFormatError(f"{name}: is not a PNG") from error
    except DAMAGED as error:
        raise ImageFormatError(f"{name}: is not a whole PNG ({error})") from error
    if spec is not None:
        _check(pixels, text, spec, name)
    return Picture(pixels, text)


def read_text(path: Path) -> dict[str, str]:
    """Return a PNG's text entries without decoding its pixels; empty if it is missing or not one of spectro's."""
    try:
        with PIL.Image.open(path, formats=["PNG"]) as opened:
            return _text(opened, printable(path))
    except (*DAMAGED, ImageError):
        return {}


def _text(opened: PIL.Image.Image, name: str) -> dict[str, str]:
    """Return spectro's text entries among those before the pixels.

    Raises:
        ImageError: there are more of them, or longer ones, than spectro writes.
    """
    ours = {str(key): str(value) for key, value in opened.info.items() if str(key).startswith(PREFIX)}
    if len(ours) > MOST_TEXTS or any(len(key + value) > LONGEST_TEXT for key, value in ours.items()):
        raise ImageError(f"{name}: carries more text than spectro writes: render the clip again")
    return {key.removeprefix(PREFIX): value for key, value in ours.items()}


def _check_size(opened: PIL.Image.Image, spec: SpectrogramSpec, name: str) -> None:
    """Reject a picture of another size before decoding it."""
    if opened.size != (spec.width, spec.height):
        raise ImageError(
            f"{name}: is {opened.width} x {opened.height} pixels; the spec says {spec.width} x {spec.height}: "
            "render the clip again with this spec"
        )


def _check(pixels: Image, text: Mapping[str, str], spec: SpectrogramSpec, name: str) -> None:
    if text.get("spec") != spec.fingerprint:
        told = text.get("spec")
        found = "no spec at all" if told is None else told if FINGERPRINT.fullmatch(told) else "another program"
        raise ImageError(
            f"{name}: was rendered with {found}, not with the expected spec {spec.fingerprint}: render the clip again"
        )
    if pixels.shape != spec.shape:
        raise ImageError(f"{name}: was saved again with other channels: render the clip again")


def _chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG (ISO/IEC 15948, 5.3)."""
    check = isal_zlib.crc32(content, isal_zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _text_chunk(key: str, value: str) -> bytes:
    """Return a chunk of uncompressed UTF-8 text (ISO/IEC 15948, 11.3.4.5)."""
    return _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode())


def _palette(spec: SpectrogramSpec) -> Image | None:
    """Return the colours, uint8 of shape (256, 3), if pictures are stored as palette indices, else None."""
    return colormap_table(spec.colormap) if spec.channels == "colormap" else None


def _indices(pixels: Image, table: Image) -> Image:
    """Return the palette index of each pixel's colour: uint8 of shape (height, width)."""
    weights = np.array([1 << 16, 1 << 8, 1], np.uint32)
    keys, places = np.unique(table.astype(np.uint32) @ weights, return_index=True)
    found: Image = places[np.searchsorted(keys, pixels.astype(np.uint32) @ weights)].astype(np.uint8)
    return found
