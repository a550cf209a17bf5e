"""Limits of a call, files that end early, and formats that need a plug-in."""

from __future__ import annotations

import io
import logging
import struct
import sys
import types
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from runtime.decode import MAX_PIXELS, MAX_SIDE, DecodeLimits, decode_image
from runtime.errors import ImageError, UsageError
from runtime.pictures.mosaics import mosaic_from_picture

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_decode_limits__are_those_of_the_contract() -> None:
    assert (MAX_PIXELS, MAX_SIDE) == (200_000_000, 65_535)
    assert DecodeLimits() == DecodeLimits(MAX_PIXELS, MAX_SIDE, False)


@pytest.mark.parametrize("limit", ["max_pixels", "max_side"])
def test_decode_limits__refuses_limits_below_one(limit: str) -> None:
    with pytest.raises(UsageError, match=f"--{limit.replace('_', '-')}: found 0, expected 1 or more"):
        DecodeLimits(**{limit: 0})


@pytest.mark.parametrize("size", [(101, 40), (40, 101)], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_decode_image__has_a_limit_for_each_side(kind: str, size: tuple[int, int]) -> None:
    content = encoded(Image.new("RGB", size), kind)
    assert decode_image(content, max_side=101).shape == (size[1], size[0], 3)
    message = f"^bytes: found {size[0]} x {size[1]} pixels, expected at most 100 on a side; .*--max-side"
    with pytest.raises(ImageError, match=message):
        decode_image(content, max_side=100)
    with pytest.raises(ImageError, match="on a side"):
        decode_image(Image.new("RGB", size), max_side=100)


def test_decode_image__checks_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (101, 40)), "JPEG")
    decoded: list[Image.Image] = []
    really = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image) or really(image))
    with pytest.raises(ImageError, match="on a side"):
        decode_image(content, max_side=100)
    with pytest.raises(ImageError, match="in all"):
        decode_image(content, max_pixels=4039)
    assert not decoded
    decode_image(content, max_pixels=4040)
    assert decoded


def test_decode_image__never_asks_for_a_reduced_jpeg(
    picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "draft", lambda *args: asked.append(args))
    content = encoded(Image.fromarray(picture), "JPEG")
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(decode_image(content), np.asarray(image))
    assert not asked


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM"])
def test_decode_image__takes_truncated_files_if_asked(
    kind: str, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = encoded(Image.fromarray(picture), kind)
    cut = content[: len(content) * 6 // 10]
    with pytest.raises(ImageError, match=r"^bytes: truncated picture .*--allow-truncated") as caught:
        decode_image(cut)
    assert "\n" not in str(caught.value)
    switch = ImageFile.LOAD_TRUNCATED_IMAGES
    with caplog.at_level(logging.WARNING, "dgsnet.decode"):
        pixels = decode_image(cut, allow_truncated=True)
    assert "bytes: truncated" in caplog.text
    assert switch == ImageFile.LOAD_TRUNCATED_IMAGES
    assert np.array_equal(decode_image(content, allow_truncated=True), decode_image(content))
    whole = decode_image(content)
    # A BMP begins with the last row.
    far, near = (slice(0, 8), slice(-64, None)) if kind == "BMP" else (slice(-8, None), slice(0, 64))
    assert np.array_equal(pixels[near], whole[near])
    assert not pixels[far].any()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(cut)) as image:
        by_switch = np.asarray(image.convert("RGB"))
    # Of a JPEG the switch also brings the beginning of a row of blocks, and grey where ours is black.
    is_equal = (pixels == by_switch).all(axis=(1, 2))
    is_black = ~pixels.any(axis=(1, 2))
    assert is_equal[~is_black].all()
    assert kind == "JPEG" or is_equal.all()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "JPEG2000"])
def test_decode_image__takes_no_truncated_file_whose_pixels_come_in_another_order(
    kind: str, picture: np.ndarray
) -> None:
    content = encoded(Image.fromarray(picture), kind)
    with pytest.raises(ImageError, match=r"^bytes: "):
        decode_image(content[: len(content) * 9 // 10], allow_truncated=True)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG"])
def test_decode_image__refuses_damage_even_if_truncation_is_allowed(kind: str, picture: np.ndarray) -> None:
    content = bytearray(encoded(Image.fromarray(picture), kind))
    content[: len(content) // 2] = b"\xff" * (len(content) // 2)
    with pytest.raises(ImageError):
        decode_image(bytes(content), allow_truncated=True)
    with pytest.raises(ImageError):
        decode_image(content[:40], allow_truncated=True)


def test_decode_image__keeps_calls_with_different_limits_apart(picture: np.ndarray) -> None:
    content = encoded(Image.fromarray(picture), "JPEG")
    cut = content[: len(content) // 2]

    def attempt(number: int) -> str:
        try:
            decode_image(cut, allow_truncated=number % 2 == 0)
        except ImageError:
            return "refused"
        return "taken"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(attempt, range(32))) == ["taken", "refused"] * 16


def test_decode_image__says_which_plug_in_a_heic_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"^bytes: found HEIC, .* install pillow-heif"):
        decode_image(HEIC)


def test_decode_image__reads_heic_by_the_plug_in_without_registering_it(
    monkeypatch: pytest.MonkeyPatch, picture: np.ndarray
) -> None:
    # Stands in for pillow-heif, which is no dependency: shows the call, decodes nothing.
    def reader(stream: io.BytesIO, _name: str) -> Image.Image:
        assert stream.read() == HEIC
        return Image.fromarray(picture)

    plugin = types.ModuleType("pillow_heif.as_plugin")
    plugin.HeifImageFile = reader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", types.ModuleType("pillow_heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", plugin)
    assert np.array_equal(decode_image(HEIC), picture)
    assert "HEIF" not in Image.OPEN


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (31, 31)], ids=str)
def test_mosaic_from_picture__refuses_slivers(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "sliver.png"
    Image.new("RGB", size).save(path)
    assert decode_image(path).shape == (size[1], size[0], 3)
    with pytest.raises(
        ImageError, match=f"sliver.png: found {size[0]} x {size[1]} pixels, expected at least 32"
    ):
        mosaic_from_picture(path)


def test_decode_image__ignores_colour_profiles() -> None:
    image = Image.new("RGB", (40, 40), (200, 60, 30))

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    pixels = decode_image(encoded(image, "PNG", icc_profile=profile))
    assert pixels[7, 7].tolist() == [200, 60, 30]


@pytest.mark.parametrize("mode", ["RGB", "LA", "RGBA"])
def test_decode_image__keeps_the_high_byte_of_16_bit_png_colour(mode: str) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bands, kind = {"RGB": (3, 2), "LA": (2, 4), "RGBA": (4, 6)}[mode]
    samples = np.random.default_rng(0).integers(0, 65536, (33, 34, bands)).astype(">u2")
    if mode != "RGB":
        samples[..., -1] = 65535
    lines = b"".join(b"\0" + line.tobytes() for line in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 34, 33, 16, kind, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    colour = samples[..., :1].repeat(3, axis=2) if mode == "LA" else samples[..., :3]
    assert np.array_equal(decode_image(content), (colour >> 8).astype(np.uint8))
