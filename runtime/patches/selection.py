"""Patch selection: which 49 squares of a picture the detector looks at, and the mosaic made of them.

The one implementation in the project; training and inference both call it. numpy only. Everything here is a
pure function of its arguments, so that threads may share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SpecError
from runtime.patches.entropy import entropy_at, patch_entropy
from runtime.patches.pixels import patch_grid, pixels_of
from runtime.patches.sifting import extreme_entropies
from runtime.spec import (
    GRID_SIDE,
    HIGHEST_COUNT,
    LOWEST_COUNT,
    MOSAIC_SIDE,
    PATCH_COUNT,
    PATCH_SIDE,
    PERMUTATION,
)

if TYPE_CHECKING:
    from runtime.patches.pixels import Picture

__all__ = [
    "chosen_indices",
    "mosaic_from_patches",
    "patch_entropy",
    "select_patches",
    "selected_indices",
    "selected_patches",
]

# Two float32 entropies further apart than this are in the right order: each errs by up to 2.2e-6.
_ORDER_MARGIN = 1e-5
# Where ties at zero are looked for: so many of the first candidates, so many at a time.
_LOOKED_FOR_ZEROS = 512
_EARLY = 64


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


def chosen_indices(image: Picture) -> NDArray[np.int64]:
    """Returns ``selected_indices(patch_entropy(image))``, in a fraction of the time.

    float32 sifts; every patch that it leaves within 1e-5 of another one near a cut is measured in float64.

    Args:
        image: uint8 ``[H, W, 3]`` or ``Pixels``.

    Returns:
        int64 ``[49]``.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    image = pixels_of(image)
    rows, columns = patch_grid(image)
    if rows * columns <= PATCH_COUNT:
        return selected_indices(patch_entropy(image))
    entropy = extreme_entropies(image, LOWEST_COUNT, HIGHEST_COUNT, _ORDER_MARGIN).reshape(-1)
    sifted = np.flatnonzero(~np.isnan(entropy))
    cuts = np.partition(entropy[sifted], (LOWEST_COUNT - 1, -HIGHEST_COUNT))
    lowest = sifted[entropy[sifted] <= cuts[LOWEST_COUNT - 1] + _ORDER_MARGIN]
    lowest = _without_late_zeros(image, lowest)
    highest = sifted[entropy[sifted] >= cuts[-HIGHEST_COUNT] - _ORDER_MARGIN]
    is_close = np.zeros(entropy.size, bool)
    is_close[_close_to_another(entropy, lowest)] = True
    is_close[_close_to_another(entropy, highest)] = True
    undecided = np.flatnonzero(is_close)
    entropy[undecided] = entropy_at(image, undecided)
    lowest = lowest[np.argsort(entropy[lowest], kind="stable")]
    highest = highest[np.argsort(entropy[highest], kind="stable")]
    return np.concatenate([lowest[:LOWEST_COUNT], highest[-HIGHEST_COUNT:]])


def selected_patches(image: Picture) -> NDArray[np.uint8]:
    """Returns the pixels of the 49 selected patches, unpermuted.

    This is the expensive half of ``select_patches``; a caller that draws many permutations of one picture
    keeps its result (150 528 bytes) and calls ``mosaic_from_patches``.

    Args:
        image: uint8 ``[H, W, 3]`` or ``Pixels``.

    Returns:
        uint8 ``[49, 32, 32, 3]``.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    pixels = pixels_of(image)
    return pixels.patches(chosen_indices(pixels))


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
    image: Picture, *, permutation: Sequence[int] | NDArray[np.integer[Any]] | None = None
) -> NDArray[np.uint8]:
    """Returns the mosaic of a picture: what the detector's graph takes.

    Args:
        image: uint8 ``[H, W, 3]``, RGB, at full resolution, or ``Pixels``.
        permutation: each of 0..48 once; None for the literal one of inference, ``spec.PERMUTATION``.

    Returns:
        uint8 ``[224, 224, 3]``, contiguous.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
        SpecError: ``permutation`` is not one.
    """
    return mosaic_from_patches(selected_patches(image), permutation)


def _without_late_zeros(image: Picture, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the candidates up to the 24th of entropy 0, if it comes early: nothing later can be lower.

    A picture on a white ground has thousands of candidates; without this, all of them would be measured.
    """
    zeros = 0
    for start in range(0, min(candidates.size - _EARLY, _LOOKED_FOR_ZEROS), _EARLY):
        zeros += int(np.count_nonzero(entropy_at(image, candidates[start : start + _EARLY]) == 0.0))
        if zeros >= LOWEST_COUNT:
            return candidates[: start + _EARLY]
    return candidates


def _close_to_another(entropy: NDArray[np.float64], candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns those candidates whose order among the candidates float32 does not tell."""
    ascending = candidates[np.argsort(entropy[candidates])]
    is_close = np.diff(entropy[ascending]) <= _ORDER_MARGIN
    undecided: NDArray[np.int64] = ascending[np.append(is_close, False) | np.insert(is_close, 0, False)]
    return undecided
