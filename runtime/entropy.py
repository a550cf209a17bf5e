"""Spectral entropy as the method defines it: float64, rounded to 9 decimals, the same for equal patches.

numpy only. Pure functions of their arguments, so that threads may share them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.spec import PATCH_SIDE
from runtime.spectrum import EPSILON, GREY, entropy_from_products

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
    columns = patch_grid(image)[1]
    entropy = entropy_from_products(image, np.float64)
    scaled = entropy * 10.0**_DECIMALS
    from_middle = np.abs(scaled - np.floor(scaled) - 0.5)
    # The products' last bits depend on the place in the picture. Where rounding hangs on them, a transform of
    # the patch alone decides, so that equal patches always tie.
    for row, column in np.argwhere(from_middle < _ROUNDING_MARGIN * 10.0**_DECIMALS):
        patch = patch_at(image, int(row) * columns + int(column), columns)
        entropy[row, column] = _entropy_by_fft(patch[np.newaxis])[0]
    return _rounded(entropy)


def entropy_at(image: NDArray[np.uint8], indices: Iterable[int]) -> NDArray[np.float64]:
    """Returns what ``patch_entropy`` returns at some row-major indices, each different patch measured once.

    Args:
        image: uint8 ``[H, W, 3]``, sides of at least 32.
        indices: which patches.

    Returns:
        float64, one value for each index.
    """
    columns = patch_grid(image)[1]
    values: list[float] = []
    known: dict[bytes, float] = {}
    # Pixels of patches not yet measured -> where their value goes.
    waiting: dict[bytes, list[int]] = {}

    def measure() -> None:
        for (pixels, places), value in zip(waiting.items(), _measured(list(waiting)).tolist(), strict=True):
            known[pixels] = value
            for place in places:
                values[place] = value
        waiting.clear()

    for place, index in enumerate(indices):
        pixels = patch_at(image, index, columns).tobytes()
        values.append(known.get(pixels, np.nan))
        if pixels not in known:
            waiting.setdefault(pixels, []).append(place)
        if len(waiting) == _STRIP:
            if len(known) >= _REMEMBERED:
                known.clear()
            measure()
    if waiting:
        measure()
    return np.array(values, dtype=np.float64)


def patch_at(image: NDArray[np.uint8], index: int, columns: int) -> NDArray[np.uint8]:
    """Returns one patch, uint8 ``[32, 32, 3]``, a view; ``index`` counts row by row over ``columns``."""
    top, left = index // columns * PATCH_SIDE, index % columns * PATCH_SIDE
    return image[top : top + PATCH_SIDE, left : left + PATCH_SIDE]


def patch_grid(image: NDArray[np.uint8]) -> tuple[int, int]:
    """Returns how many rows and columns of whole patches a picture has.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    height, width = image.shape[:2]
    if min(height, width) < PATCH_SIDE:
        raise ImageError(
            f"found {width} x {height} pixels, expected at least {PATCH_SIDE} on each side; "
            "use a larger original, not an enlarged copy"
        )
    return height // PATCH_SIDE, width // PATCH_SIDE


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
