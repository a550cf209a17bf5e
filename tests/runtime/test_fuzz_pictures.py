"""Damaged pictures of every format through decode and select: a mosaic or one line, in bounded time."""

from __future__ import annotations

import functools
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from runtime.decode import DecodeLimits, reading
from runtime.errors import ImageError
from runtime.pictures.mosaics import mosaic_from_picture

# A longer run, other examples every time: DGSNET_FUZZ=20000 pytest tests/runtime/test_fuzz_pictures.py
EXAMPLES = int(os.environ.get("DGSNET_FUZZ", "250"))
SECONDS = 10
LIMITS = DecodeLimits(max_pixels=1_000_000, max_side=5_000)
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="DGSNET_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SIZES = (0, 1, 31, 32, 255, 256, 4_999, 5_001, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def pixels(height: int = 70, width: int = 90) -> np.ndarray:
    draw = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(height), np.arange(width))[..., None] + draw.normal(
        0, 9, (height, width, 3)
    )
    return np.clip(smooth, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def seeds() -> dict[str, bytes]:
    rgb = Image.fromarray(pixels())
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(pixels()[..., 1].copy()))
    grey16 = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a" * 40
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(180)], "duration": 40}
    palette = rgb.quantize(50)
    made = {
        "jpeg": encoded(rgb, "JPEG", exif=exif),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True, subsampling=0),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg grey": encoded(rgb.convert("L"), "JPEG", quality=20),
        "mpo": encoded(rgb, "MPO", save_all=True, append_images=[rgb.rotate(90)]),
        "png": encoded(rgb, "PNG", exif=exif),
        "png alpha": encoded(rgba, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=3),
        "png 16 bit": encoded(grey16, "PNG"),
        "png 1 bit": encoded(rgb.convert("1"), "PNG"),
        "apng": encoded(rgb, "PNG", **frames),
        "gif": encoded(palette, "GIF"),
        "gif animated": encoded(rgb, "GIF", **frames, disposal=2, loop=0),
        "bmp": encoded(rgb, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "tiff": encoded(rgb, "TIFF", exif=exif),
        "tiff 16 bit": encoded(grey16, "TIFF"),
        "ppm": encoded(rgb, "PPM"),
        "ppm 16 bit": encoded(grey16, "PPM"),
        "pgm text": b"P2 70 70 255\n" + b" ".join(b"%d" % (i % 256) for i in range(4900)),
    }
    for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        image = rgb.convert("1") if name == "group4" else rgb
        made[f"tiff {name}"] = encoded(image, "TIFF", compression=name)
    if features.check("webp"):
        made["webp"] = encoded(rgb, "WEBP", exif=exif)
        made["webp lossless"] = encoded(rgba, "WEBP", lossless=True)
        made["webp animated"] = encoded(rgb, "WEBP", **frames)
    if features.check("avif"):
        made["avif"] = encoded(rgb, "AVIF", exif=exif)
        made["avif alpha"] = encoded(rgba, "AVIF")
    if features.check("jpg_2000"):
        made["jpeg 2000"] = encoded(rgb, "JPEG2000")
        made["jpeg 2000 codestream"] = encoded(rgb, "JPEG2000", no_jp2=True)
    return made


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"one file took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(content: bytes) -> None:
    partly = DecodeLimits(LIMITS.max_pixels, LIMITS.max_side, allow_truncated=True)
    # Once as a whole and once, like a large picture, in rectangles.
    for limits, whole_pixels in ((LIMITS, 10**9), (partly, 0)):
        try:
            with time_limit(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(reading, "_WHOLE_PIXELS", whole_pixels)
                made = mosaic_from_picture(content, name="fuzz", limits=limits)
        except ImageError as err:
            message = str(err)
            assert message.startswith("fuzz: ")
            assert len(message.splitlines()) == 1
            assert len(message) < 500
        else:
            assert made.mosaics.shape == (1, 224, 224, 3)
            assert made.mosaics.dtype == np.uint8


def flipped(draw: Callable[..., Any], content: bytes) -> bytes:
    damaged = bytearray(content)
    # Headers decide more than pixels do.
    places = st.integers(0, min(len(content), 300) - 1) | st.integers(0, len(content) - 1)
    for place in draw(st.lists(places, min_size=1, max_size=8)):
        damaged[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(damaged)


def truncated(draw: Callable[..., Any], content: bytes) -> bytes:
    return content[: draw(st.integers(0, len(content) - 1))]


def spliced(draw: Callable[..., Any], content: bytes) -> bytes:
    other = seeds()[draw(st.sampled_from(sorted(seeds())))] if draw(st.booleans()) else content
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(other))] * 2)))
    place = draw(st.integers(0, len(content)))
    skipped = draw(st.integers(0, 200))
    return content[:place] + other[start:end] + content[place + skipped :]


def resized(draw: Callable[..., Any], content: bytes) -> bytes:
    """A number of a header, large or small end first, becomes another size."""
    width, order = draw(st.sampled_from([2, 4])), draw(st.sampled_from(["big", "little"]))
    value = draw(st.sampled_from(SIZES)) % 256**width
    known = [
        place
        for size in (70, 90)
        for place in range(min(len(content), 600))
        if content[place : place + width] == size.to_bytes(width, order)
    ]
    place = draw(st.sampled_from(known) if known else st.integers(0, min(len(content), 200)))
    return content[:place] + value.to_bytes(width, order) + content[place + width :]


def repeated(draw: Callable[..., Any], content: bytes) -> bytes:
    start = draw(st.integers(0, len(content) - 1))
    end = draw(st.integers(start + 1, min(len(content), start + 64)))
    return content[:start] + content[start:end] * draw(st.integers(2, 2000)) + content[end:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(seeds()))
def test_mosaic_from_picture__reads_what_the_fuzz_starts_from(name: str) -> None:
    assert mosaic_from_picture(seeds()[name]).mosaics.any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", [flipped, truncated, spliced, resized, repeated], ids=lambda f: f.__name__)
def test_mosaic_from_picture__survives_any_damage(damage: Callable[..., bytes]) -> None:
    @FUZZ
    @given(st.sampled_from(sorted(seeds())), st.data())
    def attempt(name: str, data: st.DataObject) -> None:
        judge(damage(data.draw, seeds()[name]))

    attempt()


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(name=st.sampled_from(sorted(seeds())), head=st.integers(4, 64), tail=st.binary(max_size=400))
def test_mosaic_from_picture__survives_a_true_beginning_and_any_end(
    name: str, head: int, tail: bytes
) -> None:
    judge(seeds()[name][:head] + tail)
