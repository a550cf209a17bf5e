"""Which patches can be among those of the lowest and highest entropy: most of a photograph's cannot.

numpy only. Pure functions of their arguments, so that threads may share them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.spec import PATCH_SIDE
from runtime.spectrum import BAND, EPSILON, BandBuffers, bands_of, basis_for, entropy_of_grey, grey_of

# By how much the varying share of a patch, summed in float32, may err; at worst 6e-6, 32 numbers in a row.
_SHARE_MARGIN = 1e-5
# If bounds leave more than this part of a band open, so many of the next bands are transformed unasked.
_WORTH_A_BOUND = 0.75
_BANDS_TO_SKIP = 4


def extreme_entropies(
    image: NDArray[np.uint8], lowest: int, highest: int, margin: float
) -> NDArray[np.float64]:
    """Returns float32 entropies of the patches that may be among the lowest or the highest, NaN for the rest.

    A patch is transformed unless the bounds that follow from the variance of its grey values put it more than
    ``margin`` above ``lowest`` others and below ``highest`` others: less than half of a large photograph is,
    all of uniform noise.

    Args:
        image: uint8 ``[H, W, 3]``, sides of at least 32 and at least ``lowest + highest`` patches.
        lowest: how many of the lowest are wanted.
        highest: how many of the highest are wanted.
        margin: in bits, at least twice the error of float32.

    Returns:
        float64 ``[H // 32, W // 32]``.
    """
    basis = basis_for(np.dtype(np.float32))
    buffers = BandBuffers(basis.dtype)
    entropy = np.full((image.shape[0] // PATCH_SIDE, image.shape[1] // PATCH_SIDE), np.nan)
    low_values, high_values = np.full(lowest, np.inf), np.full(highest, -np.inf)
    # Grey values and places of patches that wait until a whole band of them can be transformed.
    waiting = np.empty((PATCH_SIDE, 2 * BAND, PATCH_SIDE), np.float32)
    places = np.empty(2 * BAND, np.int64)
    count = 0
    # How many of the next bands are transformed whole; the first one sets the cuts.
    unbounded = 1

    def transform(indices: NDArray[np.int64], grey: NDArray[Any]) -> None:
        nonlocal low_values, high_values
        values = entropy_of_grey(grey, basis, buffers)
        entropy.reshape(-1)[indices] = values
        low_values = np.sort(np.append(low_values, values))[:lowest]
        high_values = np.sort(np.append(high_values, values))[-highest:]

    for indices, band in bands_of(image):
        grey = grey_of(band, basis, buffers)
        if unbounded:
            unbounded -= 1
            transform(indices, grey)
            continue
        least, most = entropy_bounds(_varying_share(grey))
        is_open = (least <= low_values[-1] + margin) | (most >= high_values[0] - margin)
        taken = np.flatnonzero(is_open)
        if taken.size >= _WORTH_A_BOUND * is_open.size:
            # All patches are alike, and the bounds cost more than they save.
            unbounded = _BANDS_TO_SKIP
            transform(indices, grey)
            continue
        end = count + taken.size
        waiting[:, count:end] = grey[:, taken]
        places[count:end] = indices[taken]
        count = end
        if count >= BAND:
            transform(places[:BAND], waiting[:, :BAND])
            count -= BAND
            waiting[:, :count] = waiting[:, BAND:end]
            places[:count] = places[BAND:end]
    if count:
        transform(places[:count], waiting[:, :count])
    return entropy


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
