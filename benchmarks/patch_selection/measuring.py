"""Patch selection against a Python loop over patches in float64, and against decoding the same picture."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.patches.selection import chosen_indices, select_patches
from runtime.spec import HIGHEST_COUNT, LOWEST_COUNT, PATCH_SIDE

JPEG_QUALITY = 90
CALLS = 5


def loop_selection(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the selected patches' row-major indices: one 2-D FFT per patch, entropies in float64."""
    height, width = (side // PATCH_SIDE * PATCH_SIDE for side in image.shape[:2])
    entropies = []
    for top in range(0, height, PATCH_SIDE):
        for left in range(0, width, PATCH_SIDE):
            patch = image[top : top + PATCH_SIDE, left : left + PATCH_SIDE].astype(np.float64)
            grey = 0.299 * patch[..., 0] + 0.587 * patch[..., 1] + 0.114 * patch[..., 2]
            power = np.abs(np.fft.fft2(grey)) ** 2
            share = power / (power.sum() + 1e-12)
            entropies.append(-(share * np.log2(share + 1e-12)).sum())
    order = np.argsort(np.round(entropies, 9), kind="stable")
    return np.concatenate([order[:LOWEST_COUNT], order[-HIGHEST_COUNT:]])


def patch_selection(height: int, width: int, repeats: int) -> dict[str, Any]:
    """Returns medians in milliseconds and ratios, taken round by round, on one picture, once both agree.

    The loop stops at the indices; ours goes on to the mosaic. ``decode_ms`` is Pillow turning the same
    picture, a JPEG of quality 90, into an RGB array. In each round ours and the decoder run five times, the
    first time with cold caches, and count with their median.
    """
    image = _picture(height, width)
    if not np.array_equal(loop_selection(image), chosen_indices(image)):
        raise SystemExit("the two selections differ: no speed is reported")
    jpeg = _jpeg(image)
    rounds = [
        (
            _ms(lambda: loop_selection(image)),
            _median_ms(lambda: select_patches(image)),
            _median_ms(lambda: _decoded(jpeg)),
        )
        for _ in range(repeats)
    ]
    ratios = [loop / ours for loop, ours, _ in rounds]
    return {
        "picture": f"{width}x{height}",
        "loop_ms": statistics.median(loop for loop, _, _ in rounds),
        "ours_ms": statistics.median(ours for _, ours, _ in rounds),
        "decode_ms": statistics.median(decode for _, _, decode in rounds),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "decode_ratio": statistics.median(decode / ours for _, ours, decode in rounds),
    }


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Returns smooth content with noise of varying strength, so that entropies spread as in a photograph."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 127 + 60 * np.sin(rows / 97.0) * np.cos(columns / 61.0)
    noise = draw.normal(0, 1, (height, width, 3)) * (20 * rows / height)[..., None]
    picture: NDArray[np.uint8] = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
    return picture


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _decoded(jpeg: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB"))


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _median_ms(work: Callable[[], object]) -> float:
    return statistics.median(_ms(work) for _ in range(CALLS))
