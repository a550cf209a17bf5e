"""Spectral entropy as the method defines it: float64, rounded to 9 decimals, the same for equal patches.

numpy only. Pure functions of their arguments, so that threads may share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.patches.pixels import patch_grid, pixels_of
from runtime.patches.spectrum import EPSILON, GREY, entropy_from_products
from runtime.spec import PATCH_SIDE

if TYPE_CHECKING:
    from runtime.patches.pixels import Picture

_DECIMALS = 9
# A value further than this from the middle between two multiples of 1e-9 is rounded like the exact one: the
# matrix products err by up to 2e-14.
_ROUNDING_MARGIN = 1e-12
# Patches measured at once when they are scattered over the picture.
_STRIP = 128
# Up to here one FFT a patch is quicker than setting up the matrix products.
_FEW = 12
# Different patches remembered while scattered ones are measured, 13 MB.
_REMEMBERED = 4096


def patch_entropy(image: Picture) -> NDArray[np.float64]:
    """Returns the spectral entropy of every 32 x 32 patch, in bits.

    grey = 0.299 R + 0.587 G + 0.114 B; p = |FFT2(grey)|^2 / (sum + 1e-12);
    entropy = -sum p log2(p + 1e-12), rounded to 9 decimals. Source: arXiv 2511.13108, patch selection.

    Args:
        image: uint8 ``[H, W, 3]`` or ``Pixels``; the remainder beyond a multiple of 32 is ignored.

    Returns:
        float64 ``[H // 32, W // 32]``.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    pixels = pixels_of(image)
    patch_grid(pixels)
    entropy = entropy_from_products(pixels, np.float64)
    values = entropy.reshape(-1)
    scaled = values * 10.0**_DECIMALS
    from_middle = np.abs(scaled - np.floor(scaled) - 0.5)
    # The products' last bits depend on the place in the picture. Where rounding hangs on them, a transform of
    # the patch alone decides, so that equal patches always tie.
    for index in np.flatnonzero(from_middle < _ROUNDING_MARGIN * 10.0**_DECIMALS).tolist():
        values[index] = _entropy_by_fft(pixels.patches(np.array([index])))[0]
    return _rounded(entropy)


def entropy_at(image: Picture, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns what ``patch_entropy`` returns at some row-major indices, each different patch measured once.

    Args:
        image: uint8 ``[H, W, 3]`` or ``Pixels``, sides of at least 32.
        indices: which patches.

    Returns:
        float64, one value for each index.
    """
    pixels = pixels_of(image)
    values = np.full(len(indices), np.nan)
    known: dict[bytes, float] = {}
    # Pixels of patches not yet measured -> where their value goes.
    waiting: dict[bytes, list[int]] = {}

    def measure() -> None:
        if len(known) >= _REMEMBERED:
            known.clear()
        for (patch, places), value in zip(waiting.items(), _measured(list(waiting)).tolist(), strict=True):
            known[patch] = value
            values[places] = value
        waiting.clear()

    for start in range(0, len(indices), _STRIP):
        patches = pixels.patches(np.asarray(indices[start : start + _STRIP]))
        for place, patch in enumerate((patch.tobytes() for patch in patches), start):
            if patch in known:
                values[place] = known[patch]
                continue
            waiting.setdefault(patch, []).append(place)
            if len(waiting) == _STRIP:
                measure()
    if waiting:
        measure()
    return values


def _measured(pixels: list[bytes]) -> NDArray[np.float64]:
    shape = (len(pixels), PATCH_SIDE, PATCH_SIDE, 3)
    patches = np.frombuffer(b"".join(pixels), dtype=np.uint8).reshape(shape)
    if len(pixels) <= _FEW:
        return _rounded(_entropy_by_fft(patches))
    side_by_side = patches.transpose(1, 0, 2, 3).reshape(PATCH_SIDE, -1, 3)
    return patch_entropy(side_by_side).reshape(-1)


def _rounded(entropy: NDArray[np.float64]) -> NDArray[np.float64]:
    # Adding 0.0 turns the -0.0 of flat patches into 0.0.
    return np.round(entropy, _DECIMALS) + 0.0


def _entropy_by_fft(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns entropies, not rounded, float64 ``[N]``; patches are uint8 ``[N, 32, 32, 3]``."""
    grey = patches[..., 0] * GREY[0] + patches[..., 1] * GREY[1] + patches[..., 2] * GREY[2]
    spectrum = np.fft.fft2(grey)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    share = power / (power.sum(axis=(-2, -1), keepdims=True) + EPSILON)
    entropy: NDArray[np.float64] = -(share * np.log2(share + EPSILON)).sum(axis=(-2, -1))
    return entropy
