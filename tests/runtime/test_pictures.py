"""From a picture to its mosaics, in one call."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime
from runtime.decode import DecodeLimits
from runtime.errors import ImageError, SpecError, UsageError
from runtime.patches.selection import select_patches
from runtime.patches.views import view_permutations
from runtime.pictures.mosaics import mosaic_from_file, mosaic_from_picture


def test_mosaic_from_picture__is_decode_then_select(picture: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    made = mosaic_from_picture(stream.getvalue())
    assert made.mosaics.shape == (1, 224, 224, 3)
    assert np.array_equal(made.mosaics[0], runtime.select_patches(picture))
    assert made.decode_ms > 0
    assert made.select_ms > 0


def test_mosaic_from_picture__gives_a_mosaic_for_every_view(picture: np.ndarray) -> None:
    first = list(reversed(range(49)))
    mosaics = mosaic_from_picture(picture, permutation=first, views=3).mosaics
    for mosaic, order in zip(mosaics, view_permutations(3, first), strict=True):
        assert np.array_equal(mosaic, select_patches(picture, permutation=order))
    assert np.array_equal(mosaics[0], select_patches(picture, permutation=first))


def test_mosaic_from_picture__names_the_picture_in_every_error(tmp_path: Path) -> None:
    path = tmp_path / "sm\nall.png"
    Image.new("RGB", (400, 31)).save(path)
    with pytest.raises(ImageError, match=r"sm\\nall.png: found 400 x 31 pixels, expected at least 32"):
        mosaic_from_picture(path)
    with pytest.raises(ImageError, match=r"^upload 7: found 400 x 31 pixels, expected at least 32"):
        mosaic_from_picture(path, name="upload 7")
    with pytest.raises(ImageError, match=r"^upload 8: found 400 x 31 pixels, expected at most 100 in all"):
        mosaic_from_picture(path, name="upload 8", limits=DecodeLimits(max_pixels=100))


def test_mosaic_from_picture__refuses_wrong_arguments(picture: np.ndarray) -> None:
    with pytest.raises(SpecError, match="exactly once"):
        mosaic_from_picture(picture, permutation=[0] * 49)
    with pytest.raises(UsageError, match="views"):
        mosaic_from_picture(picture, views=0)


def test_mosaic_from_picture__is_the_same_in_8_threads(picture: np.ndarray, tmp_path: Path) -> None:
    paths = []
    for number, kind in enumerate(["png", "jpg", "gif", "webp", "tif", "bmp"]):
        paths.append(tmp_path / f"{number}.{kind}")
        Image.fromarray(np.roll(picture, 40 * number, axis=1)).save(paths[-1])
    expected = [mosaic_from_picture(path).mosaics for path in paths]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(mosaic_from_picture, paths * 8))
    for number, result in enumerate(results):
        assert np.array_equal(result.mosaics, expected[number % len(paths)])


def test_mosaic_from_file__passes_limits_on(picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    assert np.array_equal(mosaic_from_file(path), select_patches(picture))
    with pytest.raises(ImageError, match="expected at most 100 on a side"):
        mosaic_from_file(path, max_side=100)
