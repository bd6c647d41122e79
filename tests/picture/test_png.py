import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from spectro.errors import ImageError
from spectro.picture import png
from spectro.picture.spec import SpectrogramSpec
from spectro.picture.spectrogram import render
from tests.conftest import voice

SPEC = SpectrogramSpec(win_length=512)
KINDS = [SPEC, *(replace(SPEC, channels=kind) for kind in ("colormap", "deltas", "windows"))]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.channels)
def test_pixels_and_text_read_back_equal(tmp_path: Path, spec: SpectrogramSpec) -> None:
    pixels = render(voice(), spec)
    path = tmp_path / "a.png"
    path.write_bytes(png.encode(pixels, spec, "clip ü", note="x"))
    picture = png.read(path, spec)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.text == {"spec": spec.fingerprint, "clip": "clip ü", "note": "x"}
    assert png.read_text(path) == picture.text


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.channels)
def test_pillow_and_opencv_decode_the_same_colours(tmp_path: Path, spec: SpectrogramSpec) -> None:
    pixels = render(voice(), spec)
    path = tmp_path / "a.png"
    path.write_bytes(png.encode(pixels, spec, "clip"))
    colours = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
    with PIL.Image.open(path) as opened:
        opened.verify()  # all checksums
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path).convert("RGB")), colours)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], colours)  # libpng


def test_a_picture_of_another_spec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    other = replace(SPEC, hop_length=160)
    path.write_bytes(png.encode(render(voice(), other), other, "clip"))
    with pytest.raises(ImageError, match=rf"was rendered with {other.fingerprint}, not with"):
        png.read(path, SPEC)
    small = replace(SPEC, height=96)
    path.write_bytes(png.encode(render(voice(), small), small, "clip"))
    with pytest.raises(ImageError, match="224 x 96 pixels; the spec says 224 x 128"):
        png.read(path, SPEC)


def test_a_foreign_or_damaged_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(render(voice(), SPEC)).save(path)
    with pytest.raises(ImageError, match="no spec at all"):
        png.read(path, SPEC)
    with PIL.Image.open(io.BytesIO(png.encode(render(voice(), SPEC), SPEC, "clip"))) as ours:
        text = PngInfo()
        text.add_itxt("spectro:spec", SPEC.fingerprint)
        ours.convert("RGB").save(path, pnginfo=text)
    with pytest.raises(ImageError, match="saved again with other channels"):
        png.read(path, SPEC)
    whole = png.encode(render(voice(), SPEC), SPEC, "clip")
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.png: is not a (whole )?PNG"):
            png.read(path, SPEC)


def test_a_png_with_a_chunk_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """Pillow reads such a chunk without checking its length."""
    whole = png.encode(render(voice(), SPEC), SPEC, "clip")
    end = whole.index(b"IEND") - 4
    chunk = b"cHRM" + b"\0\0"
    path = tmp_path / "a.png"
    path.write_bytes(whole[:end] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[end:])
    with pytest.raises(ImageError, match=r"a\.png: is not a whole PNG"):
        png.read(path, SPEC)


def test_encoding_pixels_of_the_wrong_shape_raises_an_error() -> None:
    with pytest.raises(ImageError, match="the spec says uint8"):
        png.encode(np.zeros((3, 4), np.uint8), SPEC, "clip")


def packed(keyword: str, text: bytes) -> bytes:
    """A compressed text chunk; one of 1,172 bytes may unpack to a megabyte."""
    content = b"zTXt" + keyword.encode() + b"\0\0" + zlib.compress(text, 9)
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("spectro:spec", b"a" * 1_000_000),
        ("spectro:clip", b"a" * 5_000),
        ("spectro:note", b"a" * 100_000_000),
        ("spectro:" + "k" * 60, b"a" * 4_090),
    ],
)
def test_a_picture_with_too_much_text_is_refused(tmp_path: Path, keyword: str, text: bytes) -> None:
    whole = png.encode(render(voice(), SPEC), SPEC, "clip")
    begin = whole.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(whole[:begin] + packed(keyword, text) + whole[begin:])
    with pytest.raises(
        ImageError, match=r"a\.png: (carries more text than spectro writes|is not a whole PNG)"
    ) as found:
        png.read(path, SPEC)
    assert len(str(found.value)) < 500
    assert png.read_text(path) == {}
    many = b"".join(packed(f"spectro:{number}", b"a") for number in range(40))
    path.write_bytes(whole[:begin] + many + whole[begin:])
    with pytest.raises(ImageError, match="carries more text"):
        png.read(path, SPEC)


@pytest.mark.parametrize("told", ["\x1b[31mred", "a" * 3_000, "0123456789ABCDEF", "0123456789abcdef0"])
def test_the_error_does_not_quote_a_spec_that_is_not_a_fingerprint(tmp_path: Path, told: str) -> None:
    whole = png.encode(render(voice(), SPEC), SPEC, "clip", other="x")
    begin = whole.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(whole[:begin] + packed("spectro:spec", told.encode()) + whole[begin:])
    with pytest.raises(
        ImageError, match=r"a\.png: was rendered with another program, not with the expected spec"
    ) as found:
        png.read(path, SPEC)
    assert told not in str(found.value)
