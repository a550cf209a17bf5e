"""Patch selection against a Python loop over patches in float64, the way the method is usually written."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.patches import patch_entropy, selected_indices
from runtime.spec import HIGHEST_COUNT, LOWEST_COUNT, PATCH_SIDE


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
    """Returns milliseconds and ratios (loop over ours, pair by pair) on one picture, once both agree."""
    image = _picture(height, width)
    if not np.array_equal(loop_selection(image), selected_indices(patch_entropy(image))):
        raise SystemExit("the two selections differ: no speed is reported")
    pairs = [
        (_ms(lambda: loop_selection(image)), _ms(lambda: selected_indices(patch_entropy(image))))
        for _ in range(repeats)
    ]
    ratios = [loop / ours for loop, ours in pairs]
    return {
        "picture": f"{width}x{height}",
        "loop_ms": statistics.median(loop for loop, _ in pairs),
        "ours_ms": statistics.median(ours for _, ours in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Returns smooth content with noise of varying strength, so that entropies spread as in a photograph."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 127 + 60 * np.sin(rows / 97.0) * np.cos(columns / 61.0)
    noise = draw.normal(0, 1, (height, width, 3)) * (20 * rows / height)[..., None]
    picture: NDArray[np.uint8] = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
    return picture


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000
