"""Which patches can be among those of the lowest and highest entropy: most of a photograph's cannot.

numpy only. Pure functions of their arguments, so that threads may share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.patches.pixels import patch_grid, pixels_of
from runtime.patches.spectrum import (
    BAND,
    EPSILON,
    BandBuffers,
    bands_of,
    basis_for,
    entropy_from_products,
    entropy_of_grey,
    grey_of,
)
from runtime.spec import PATCH_SIDE

if TYPE_CHECKING:
    from runtime.patches.pixels import Picture, Pixels

# By how much the varying share of a patch, summed in float32, may err; at worst 6e-6, 32 numbers in a row.
_SHARE_MARGIN = 1e-5
# If the tightest bounds leave more than this part of a sample open, all patches are transformed unasked.
_WORTH_A_BOUND = 0.75
# How many patches that sample has.
_SAMPLE = 32
# So few patches are transformed sooner than looked at.
_FEW = 2 * BAND
# So many patches are looked at together, whether their bounds still let them in.
_LOOKED_AT = 8 * BAND


def extreme_entropies(image: Picture, lowest: int, highest: int, margin: float) -> NDArray[np.float64]:
    """Returns float32 entropies of the patches that may be among the lowest or the highest, NaN for the rest.

    The variance of a patch's grey values bounds its entropy. The patches whose bounds promise most are
    transformed first; after them only those that the bounds do not put more than ``margin`` above ``lowest``
    others and below ``highest`` others: a tenth or less of a large photograph, all of uniform noise.

    Args:
        image: uint8 ``[H, W, 3]`` or ``Pixels``, sides of at least 32 and at least ``lowest + highest``
            patches.
        lowest: how many of the lowest are wanted.
        highest: how many of the highest are wanted.
        margin: in bits, at least twice the error of float32.

    Returns:
        float64 ``[H // 32, W // 32]``.
    """
    pixels = pixels_of(image)
    rows, columns = patch_grid(pixels)
    grey = _GreyPatches(pixels)
    if rows * columns <= _FEW or _are_alike(grey, rows * columns, margin):
        return entropy_from_products(pixels, np.float32)
    least, most = entropy_bounds(grey.shares())
    entropy = np.full(least.size, np.nan)
    low_values, high_values = np.full(lowest, np.inf), np.full(highest, -np.inf)

    def transform(indices: NDArray[np.int64]) -> None:
        nonlocal low_values, high_values
        values = grey.entropies(grey.at(indices))
        entropy[indices] = values
        low_values = np.sort(np.append(low_values, values))[:lowest]
        high_values = np.sort(np.append(high_values, values))[-highest:]

    # Half a band of each, so that the cuts are near their final places before anything else is looked at.
    low = np.argpartition(least, BAND // 2)[: max(lowest, BAND // 2)]
    high = np.argpartition(most, -BAND // 2)[-max(highest, BAND // 2) :]
    is_promising = np.zeros(least.size, bool)
    is_promising[low] = is_promising[high] = True
    promising = np.flatnonzero(is_promising)
    for start in range(0, promising.size, BAND):
        transform(promising[start : start + BAND])
    others = np.flatnonzero(np.isnan(entropy))
    waiting = np.empty(0, np.int64)
    for start in range(0, others.size, _LOOKED_AT):
        batch = others[start : start + _LOOKED_AT]
        is_open = (least[batch] <= low_values[-1] + margin) | (most[batch] >= high_values[0] - margin)
        waiting = np.append(waiting, batch[is_open])
        while waiting.size >= BAND:
            transform(waiting[:BAND])
            waiting = waiting[BAND:]
    if waiting.size:
        transform(waiting)
    return entropy.reshape(rows, columns)


class _GreyPatches:
    """The patches of one picture as float32 grey values, with the memory that this takes."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._basis = basis_for(np.dtype(np.float32))
        self._buffers = BandBuffers(self._basis.dtype)

    def at(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Returns ``[y, patch, x]`` of at most ``BAND`` patches, good until the next call."""
        one_below_another = self._pixels.patches(indices).reshape(-1, PATCH_SIDE, 3)
        return grey_of(one_below_another, self._basis, self._buffers)

    def entropies(self, grey: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the entropies of what ``at`` gave, float64."""
        return entropy_of_grey(grey, self._basis, self._buffers)

    def shares(self) -> NDArray[np.float64]:
        """Returns of every patch how much of its power is not at the constant frequency, float64 ``[N]``."""
        shares = [
            (indices, _varying_share(grey_of(band, self._basis, self._buffers)))
            for indices, band in bands_of(self._pixels)
        ]
        order = np.argsort(np.concatenate([indices for indices, _ in shares]))
        return np.concatenate([share for _, share in shares])[order]


def _are_alike(grey: _GreyPatches, count: int, margin: float) -> bool:
    """Whether the bounds tell the patches of a picture apart too seldom to be worth their time.

    Asked of a sample from all over the picture, with the least and the greatest entropy in it as cuts.
    """
    sample = np.linspace(0, count - 1, _SAMPLE).astype(np.int64)
    values_of_grey = grey.at(sample)
    least, most = entropy_bounds(_varying_share(values_of_grey))
    values = grey.entropies(values_of_grey)
    is_open = (least <= values.min() + margin) | (most >= values.max() - margin)
    return bool(is_open.mean() > _WORTH_A_BOUND)


def entropy_bounds(share: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the least and the most entropy, in bits, of patches by the share of their varying frequencies.

    With a = that share, b(a) = -a log2(a) - (1 - a) log2(1 - a) and h = the entropy among the 1023 varying
    frequencies, the entropy is b(a) + a h, and 0 <= h < 10. b is concave; b(a) + 10 a grows up to a = 0.999.

    Args:
        share: float64 ``[N]``, in error by at most 1e-5.

    Returns:
        Two float64 ``[N]``.
    """
    ends = np.clip([share - _SHARE_MARGIN, share + _SHARE_MARGIN], 0.0, 1.0)
    capped = np.minimum(ends[1], 0.999)
    shares = np.maximum([ends[0], ends[1], capped], EPSILON)
    rests = np.maximum(1.0 - shares, EPSILON)
    bits = -(shares * np.log2(shares) + rests * np.log2(rests))
    return np.minimum(bits[0], bits[1]), bits[2] + 10.0 * capped


def _varying_share(grey: NDArray[Any]) -> NDArray[np.float64]:
    """Returns how much of the power is not at the constant frequency (Parseval), float64 ``[patches]``."""
    lines = grey.reshape(PATCH_SIDE, -1)
    squares, sums = np.einsum("yi,yi->i", lines, lines), lines.sum(axis=0)
    power = squares.reshape(-1, PATCH_SIDE).mean(axis=1, dtype=np.float64) / PATCH_SIDE
    mean = sums.reshape(-1, PATCH_SIDE).mean(axis=1, dtype=np.float64) / PATCH_SIDE
    share: NDArray[np.float64] = (power - mean * mean) / np.maximum(power, EPSILON)
    return share
