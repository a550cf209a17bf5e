"""Rectangles and patches out of Pillow, against the whole picture converted at once and turned by Pillow."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from runtime.decode import DecodeLimits, decode_image, read_pixels
from runtime.decode import reading as reading_module
from runtime.decode.pillow_pixels import PillowPixels
from runtime.errors import ImageError
from runtime.patches.pixels import ArrayPixels, patch_grid, pixels_of
from runtime.patches.selection import chosen_indices, patch_entropy, select_patches

MIB = 2**20


def lively(height: int = 330, width: int = 490) -> np.ndarray:
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 127 + 60 * np.sin(rows / 31.0) * np.cos(columns / 17.0)
    noise = draw.normal(0, 1, (height, width, 3)) * (30 * rows / height)[..., None]
    return np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)


def of_mode(mode: str) -> Image.Image:
    image = Image.fromarray(lively())
    if mode == "P with a clear colour":
        image = image.quantize(64)
        image.info["transparency"] = 7
        return image
    if mode == "RGB with a clear colour":
        image.info["transparency"] = image.getpixel((5, 5))
        return image
    if mode in ("RGBA", "LA", "RGBa", "La"):
        image = image.convert("LA" if mode.startswith("L") else "RGBA")
        image.putalpha(Image.fromarray(lively()[::-1, :, 0].copy()))
        return image.convert(mode)
    if mode == "I;16":
        return Image.fromarray(lively()[..., 0].astype(np.uint16) * 257)
    return image.convert(mode)


def simply(image: Image.Image) -> np.ndarray:
    """The whole picture at once, by the shortest way that Pillow has."""
    if image.mode == "I;16":
        return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "RGBa", "La") or "transparency" in image.info:
        layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.paste(layered, mask=layered.getchannel("A"))
        return np.asarray(ground)[..., :3]
    return np.asarray(image.convert("RGB"))


MODES = [
    "RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "RGBa", "La", "I;16",
    "P with a clear colour", "RGB with a clear colour",
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_pillow_pixels__converts_a_part_like_the_whole(mode: str) -> None:
    image = of_mode(mode)
    expected = simply(image)
    pixels = PillowPixels(image, "x")
    assert (pixels.height, pixels.width) == expected.shape[:2]
    assert np.array_equal(pixels.whole(), expected)
    for box in ((0, 330, 0, 490), (32, 64, 0, 490), (7, 8, 3, 481), (329, 330, 489, 490)):
        top, bottom, left, right = box
        assert np.array_equal(pixels.box(*box), expected[top:bottom, left:right]), box


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_pixels__turns_every_rectangle(orientation: int) -> None:
    image = Image.fromarray(lively())
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    pixels = PillowPixels(image, "x")
    assert (pixels.height, pixels.width) == expected.shape[:2]
    assert np.array_equal(pixels.whole(), expected)
    draw = np.random.default_rng(orientation)
    for _ in range(20):
        top, left = int(draw.integers(0, pixels.height)), int(draw.integers(0, pixels.width))
        bottom = int(draw.integers(top + 1, pixels.height + 1))
        right = int(draw.integers(left + 1, pixels.width + 1))
        assert np.array_equal(pixels.box(top, bottom, left, right), expected[top:bottom, left:right])


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_pillow_pixels__gives_the_patches_and_the_selection_of_the_array(orientation: int) -> None:
    image = Image.fromarray(lively(700, 1100))
    image.getexif()[0x0112] = orientation
    pixels = PillowPixels(image, "x")
    array = np.asarray(ImageOps.exif_transpose(image))
    rows, columns = patch_grid(array)
    assert patch_grid(pixels) == (rows, columns)
    # Runs over the end of a row, single ones, repeated ones, backwards.
    orders = ([0], range(rows * columns), [columns - 1, columns, columns + 1], [5, 5, 4, 3, 9, 10])
    for indices in (np.array(order) for order in orders):
        assert np.array_equal(pixels.patches(indices), ArrayPixels(array).patches(indices))
    assert np.array_equal(chosen_indices(pixels), chosen_indices(array))
    assert np.array_equal(select_patches(pixels), select_patches(array))
    assert np.array_equal(patch_entropy(pixels), patch_entropy(array))


def test_pillow_pixels__is_read_by_many_threads() -> None:
    pixels = PillowPixels(of_mode("P with a clear colour"), "x")
    expected = select_patches(simply(of_mode("P with a clear colour")))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: select_patches(pixels), range(24)))
    assert all(np.array_equal(result, expected) for result in results)


def test_pillow_pixels__names_what_it_cannot_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = PillowPixels(of_mode("CMYK"), "odd.tif")

    def fails(*_args: object) -> None:
        raise ValueError("no such\nconversion")

    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(ImageError, match=r"^odd.tif: its pixels cannot become RGB \(no such conversion\)$"):
        pixels.box(0, 32, 0, 32)


def test_read_pixels__equals_decode_image_whether_large_or_small(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    of_mode("RGBA").save(stream, "PNG")
    content = stream.getvalue()
    expected = decode_image(content)
    small = read_pixels(content)
    monkeypatch.setattr(reading_module, "_WHOLE_PIXELS", 0)
    large = read_pixels(content)
    assert isinstance(small, ArrayPixels)
    assert isinstance(large, PillowPixels)
    for pixels in (small, large):
        assert np.array_equal(pixels.box(0, pixels.height, 0, pixels.width), expected)


def test_read_pixels__keeps_an_array_as_it_is() -> None:
    grey = lively()[..., 0]
    pixels = read_pixels(grey)
    box = pixels.box(10, 20, 30, 40)
    assert np.shares_memory(box, grey)
    assert np.array_equal(box, np.repeat(grey[10:20, 30:40, None], 3, axis=2))
    with pytest.raises(ImageError, match=r"^mine: found 490 x 330 pixels, expected at most 489 on a side"):
        read_pixels(grey, name="mine", limits=DecodeLimits(max_side=489))


def test_array_pixels__takes_any_strides() -> None:
    array = lively()
    for view in (array[::-1, ::-1], np.asfortranarray(array), array[..., ::-1], array[::2, ::3]):
        indices = np.array([7, 0, 3])
        copy = np.ascontiguousarray(view)
        assert np.array_equal(pixels_of(view).patches(indices), pixels_of(copy).patches(indices))


PEAK = """
import sys
from runtime.pictures.mosaics import mosaic_from_picture

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key + ":"))

mosaic_from_picture(sys.argv[1])
with open("/proc/self/clear_refs", "w") as switch:
    switch.write("5")
idle = memory("VmRSS")
mosaic_from_picture(sys.argv[2])
print(memory("VmHWM") - idle)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("orientation", [1, 6])
def test_mosaic_from_picture__takes_4_5_bytes_a_pixel(orientation: int, tmp_path: Path) -> None:
    side = 5000
    large = Image.new("RGB", (side, side))
    tile = Image.fromarray(lively(500, 500))
    for place in range(100):
        large.paste(tile.rotate(90 * place), (place % 10 * 500, place // 10 * 500))
    exif = Image.Exif()
    exif[0x0112] = orientation
    large.save(tmp_path / "large.jpg", exif=exif)
    tile.save(tmp_path / "small.jpg")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small.jpg"), str(tmp_path / "large.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # The usual way takes 14 bytes a pixel; the bound for 100 megapixels allows 64 MiB more.
    assert int(done.stdout) <= 4.5 * side**2 + 64 * MIB * side**2 / 1e8
