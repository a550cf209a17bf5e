"""Patch selection: which 49 squares of a picture the detector looks at, and the mosaic made of them.

The one implementation in the project; training and inference both call it. numpy only. Everything here is a
pure function of its arguments, so that threads may share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError, SpecError
from runtime.spec import (
    GRID_SIDE,
    HIGHEST_COUNT,
    LOWEST_COUNT,
    MOSAIC_SIDE,
    PATCH_COUNT,
    PATCH_SIDE,
    PERMUTATION,
)

# Patches transformed at once. With 16 no temporary exceeds 140 kB, which the allocator reuses without fresh
# pages, in worker threads too. Measured at 1024 x 1024 in a worker of a busy 2-core machine: 24 ms with 16,
# 35 ms with 8, 50 ms with 32 to 256; alone in the main thread 11 ms with 16 or 32, 18 ms and more above.
_CHUNK = 16
# rfft2 leaves out the conjugate-symmetric half: every column but the first and the Nyquist one counts twice.
_COLUMN_WEIGHT = np.array([1.0] + [2.0] * (PATCH_SIDE // 2 - 1) + [1.0])
_EPSILON = 1e-12
_DECIMALS = 9


def patch_entropy(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns the spectral entropy of every 32 x 32 patch, in bits.

    grey = 0.299 R + 0.587 G + 0.114 B; p = |FFT2(grey)|^2 / (sum + 1e-12);
    entropy = -sum p log2(p + 1e-12), rounded to 9 decimals. Source: arXiv 2511.13108, patch selection.

    Args:
        image: uint8 ``[H, W, 3]``; the remainder beyond a multiple of 32 is ignored.

    Returns:
        float64 ``[H // 32, W // 32]``.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    rows, columns = _grid(image)
    entropy = np.empty((rows, columns), dtype=np.float64)
    rows_at_once = max(1, _CHUNK // columns)
    for top in range(0, rows, rows_at_once):
        bottom = min(top + rows_at_once, rows)
        for left in range(0, columns, _CHUNK):
            right = min(left + _CHUNK, columns)
            block = image[top * PATCH_SIDE : bottom * PATCH_SIDE, left * PATCH_SIDE : right * PATCH_SIDE]
            entropy[top:bottom, left:right] = _block_entropy(block)
    return entropy


def selected_indices(entropy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns which patches are taken, as row-major indices: the 24 lowest, then the 25 highest, ascending.

    Ties go to the lower index. With fewer than 49 patches, all of them, ascending, repeated cyclically.

    Args:
        entropy: float64 ``[rows, columns]`` from ``patch_entropy``.

    Returns:
        int64 ``[49]``.
    """
    order = np.argsort(entropy.reshape(-1), kind="stable").astype(np.int64)
    if order.size < PATCH_COUNT:
        return np.resize(order, PATCH_COUNT)
    return np.concatenate([order[:LOWEST_COUNT], order[-HIGHEST_COUNT:]])


def selected_patches(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the pixels of the 49 selected patches, unpermuted.

    This is the expensive half of ``select_patches``; a caller that draws many permutations of one picture
    keeps its result (150 528 bytes) and calls ``mosaic_from_patches``.

    Args:
        image: uint8 ``[H, W, 3]``.

    Returns:
        uint8 ``[49, 32, 32, 3]``.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    columns = _grid(image)[1]
    origins = [
        (int(index) // columns * PATCH_SIDE, int(index) % columns * PATCH_SIDE)
        for index in selected_indices(patch_entropy(image))
    ]
    return np.stack([image[y : y + PATCH_SIDE, x : x + PATCH_SIDE] for y, x in origins])


def mosaic_from_patches(
    patches: NDArray[np.uint8], permutation: Sequence[int] | NDArray[np.integer[Any]] | None = None
) -> NDArray[np.uint8]:
    """Returns the 7 x 7 mosaic whose cell k (row by row) shows ``patches[permutation[k]]``.

    Args:
        patches: uint8 ``[49, 32, 32, 3]`` from ``selected_patches``.
        permutation: each of 0..48 once; None for the literal one of inference, ``spec.PERMUTATION``.

    Returns:
        uint8 ``[224, 224, 3]``, contiguous, never a view of ``patches``.

    Raises:
        SpecError: ``permutation`` or the shape of ``patches`` is something else.
    """
    if patches.shape != (PATCH_COUNT, PATCH_SIDE, PATCH_SIDE, 3):
        raise SpecError(f"patches: found shape {patches.shape}, expected (49, 32, 32, 3)")
    order = np.asarray(PERMUTATION if permutation is None else permutation)
    if order.shape != (PATCH_COUNT,) or not np.array_equal(np.sort(order), np.arange(PATCH_COUNT)):
        raise SpecError(f"permutation: expected each of 0..{PATCH_COUNT - 1} exactly once")
    cells = patches[order].reshape(GRID_SIDE, GRID_SIDE, PATCH_SIDE, PATCH_SIDE, 3)
    return np.ascontiguousarray(cells.transpose(0, 2, 1, 3, 4)).reshape(MOSAIC_SIDE, MOSAIC_SIDE, 3)


def select_patches(
    image: NDArray[np.uint8], *, permutation: Sequence[int] | NDArray[np.integer[Any]] | None = None
) -> NDArray[np.uint8]:
    """Returns the mosaic of a picture: what the detector's graph takes.

    Args:
        image: uint8 ``[H, W, 3]``, RGB, at full resolution.
        permutation: each of 0..48 once; None for the literal one of inference, ``spec.PERMUTATION``.

    Returns:
        uint8 ``[224, 224, 3]``, contiguous.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
        SpecError: ``permutation`` is not one.
    """
    return mosaic_from_patches(selected_patches(image), permutation)


def _grid(image: NDArray[np.uint8]) -> tuple[int, int]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    height, width = image.shape[:2]
    if min(height, width) < PATCH_SIDE:
        raise ImageError(
            f"found {width} x {height} pixels, expected at least {PATCH_SIDE} on each side; "
            "use a larger original, not an enlarged copy"
        )
    return height // PATCH_SIDE, width // PATCH_SIDE


def _block_entropy(block: NDArray[np.uint8]) -> NDArray[np.float64]:
    rows, columns = block.shape[0] // PATCH_SIDE, block.shape[1] // PATCH_SIDE
    block = block[: rows * PATCH_SIDE, : columns * PATCH_SIDE]
    grey = np.multiply(block[..., 0], 0.299, dtype=np.float64)
    grey += np.multiply(block[..., 1], 0.587, dtype=np.float64)
    grey += np.multiply(block[..., 2], 0.114, dtype=np.float64)
    patches = grey.reshape(rows, PATCH_SIDE, columns, PATCH_SIDE).transpose(0, 2, 1, 3)
    spectrum = np.fft.rfft2(patches)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    total = (power.sum(axis=-2) * _COLUMN_WEIGHT).sum(axis=-1) + _EPSILON
    share = power / total[..., None, None]
    bits = np.log2(share + _EPSILON)
    bits *= share
    entropy: NDArray[np.float64] = -(bits.sum(axis=-2) * _COLUMN_WEIGHT).sum(axis=-1)
    # Adding 0.0 turns the -0.0 of flat patches into 0.0.
    return np.round(entropy, _DECIMALS) + 0.0
