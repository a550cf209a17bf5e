"""Spectral entropy of 32 x 32 patches as matrix products, a cache-sized band of the picture at a time.

In float32 it sifts, in float64 it measures; the callers know what each may decide. numpy only. Pure functions
of their arguments, so that threads may share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.patches.pixels import pixels_of
from runtime.spec import PATCH_SIDE

if TYPE_CHECKING:
    from runtime.patches.pixels import Picture, Pixels

EPSILON = 1e-12
GREY = (0.299, 0.587, 0.114)

_HALF = PATCH_SIDE // 2
_PIXELS = PATCH_SIDE * PATCH_SIDE
# Patches transformed at once. Per call of numpy there is enough work to hide the call, the buffers (2 MB in
# float32) stay in the second-level cache, and no matrix product exceeds 2^18 multiplications, below which
# OpenBLAS keeps to the calling thread. Measured: 32 patches take 1.3 times as long, 16 take 1.7 times.
BAND = 128
# Rows of every patch whose colours are held as floating-point numbers at once.
_ROWS_AT_ONCE = 8
# Frequencies of a real patch, up to conjugation: 15 whole columns; columns 0 and 16 hold 17 values each.
_INNER = PATCH_SIDE * (_HALF - 1)
_FREQUENCIES = _INNER + 2 * (_HALF + 1)
_CONSTANT = _INNER


@dataclass(frozen=True)
class Basis:
    """The transform's constants in one precision; k runs over horizontal, u over vertical frequencies."""

    dtype: np.dtype[Any]
    # [3]
    grey: NDArray[Any]
    # [32, 32]: (cos 0, cos 16, cos 1, sin 1, cos 2, sin 2, ... sin 15) against x.
    horizontal: NDArray[Any]
    # [2, 32, 64]: real and imaginary part of u against (cosine part, sine part) x y.
    vertical: NDArray[Any]
    # [32, 32]: (cos 0 ... cos 16, sin 1 ... sin 15) against y, for the two columns that are real.
    vertical_real: NDArray[Any]
    # [514]: how often each stored frequency occurs in the whole spectrum; 0 for the constant one.
    weight: NDArray[Any]


def entropy_from_products(image: Picture, dtype: type[np.float32] | type[np.float64]) -> NDArray[np.float64]:
    """Returns the spectral entropy of every patch, in bits, as computed in ``dtype`` and not rounded.

    grey = 0.299 R + 0.587 G + 0.114 B; p = |FFT2(grey)|^2 / (sum + 1e-12); entropy = -sum p log2(p + 1e-12).
    With q = |FFT2|^2, S = sum q + 1e-12 this is log2(S) sum p - sum q log2(q + 1e-12 S) / S, which needs no
    normalised copy. The constant frequency, nearly all of S in a smooth patch, is summed apart in float64.

    Equal patches need not give equal bits: matrix libraries add in an order that depends on the position.

    Args:
        image: uint8 ``[H, W, 3]`` or ``Pixels``, sides of at least 32; the remainder beyond a multiple of 32
            is ignored.
        dtype: float32 (erred by up to 2.2e-6 on 2000 hard pictures) or float64 (by up to 2e-14).

    Returns:
        float64 ``[H // 32, W // 32]``.
    """
    basis = basis_for(np.dtype(dtype))
    buffers = BandBuffers(basis.dtype)
    pixels = pixels_of(image)
    entropy = np.empty((pixels.height // PATCH_SIDE, pixels.width // PATCH_SIDE))
    for indices, band in bands_of(pixels):
        entropy.reshape(-1)[indices] = entropy_of_grey(grey_of(band, basis, buffers), basis, buffers)
    return entropy


class BandBuffers:
    """Memory for one band, taken once per picture: fresh pages would cost as much as the arithmetic."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.colour = np.empty(3 * _ROWS_AT_ONCE * PATCH_SIDE * BAND, dtype)
        self.grey = np.empty(_PIXELS * BAND, dtype)
        self.columns = np.empty(_PIXELS * BAND, dtype)
        self.spectrum = np.empty(_PIXELS * BAND, dtype)


def bands_of(pixels: Pixels) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yields row-major indices and pixels of at most ``BAND`` patches that form a rectangle, from the top."""
    rows, columns = pixels.height // PATCH_SIDE, pixels.width // PATCH_SIDE
    across = -(-columns // -(-columns // BAND))
    down = max(1, BAND // columns)
    for top in range(0, rows, down):
        bottom = min(top + down, rows)
        for left in range(0, columns, across):
            right = min(left + across, columns)
            indices = np.arange(top, bottom)[:, np.newaxis] * columns + np.arange(left, right)
            sides = (side * PATCH_SIDE for side in (top, bottom, left, right))
            yield indices.reshape(-1), pixels.box(*sides)


def grey_of(band: NDArray[np.uint8], basis: Basis, buffers: BandBuffers) -> NDArray[Any]:
    """Returns ``[y, patch, x]``."""
    down, width = band.shape[0] // PATCH_SIDE, band.shape[1]
    patches = down * width // PATCH_SIDE
    source = band.reshape(down, PATCH_SIDE, 3 * width).transpose(1, 0, 2)
    colour = buffers.colour[: 3 * _ROWS_AT_ONCE * PATCH_SIDE * patches]
    # Cut into pieces that stay below the size from which OpenBLAS starts threads.
    pieces = colour.reshape(patches, _ROWS_AT_ONCE * PATCH_SIDE, 3)
    grey = buffers.grey[: _PIXELS * patches].reshape(-1, patches, _ROWS_AT_ONCE * PATCH_SIDE)
    for part, top in enumerate(range(0, PATCH_SIDE, _ROWS_AT_ONCE)):
        np.copyto(colour.reshape(_ROWS_AT_ONCE, down, 3 * width), source[top : top + _ROWS_AT_ONCE])
        np.matmul(pieces, basis.grey, out=grey[part])
    return grey.reshape(PATCH_SIDE, patches, PATCH_SIDE)


def entropy_of_grey(grey: NDArray[Any], basis: Basis, buffers: BandBuffers) -> NDArray[np.float64]:
    """Returns float64 ``[patches]`` for ``[y, patch, x]``."""
    patches = grey.shape[1]
    power = _power(grey, basis, buffers)
    constant = power[_CONSTANT].astype(np.float64)
    varying = _weighted_sum(power, basis)
    total = constant + varying + EPSILON
    # Scaled to a mean of 1 the logarithms are small, and so are their errors.
    mean = (varying + EPSILON) / _PIXELS
    power *= (1.0 / mean).astype(basis.dtype)
    floor = EPSILON * total
    # The spectrum is used up.
    logarithm = buffers.spectrum[: _FREQUENCIES * patches].reshape(_FREQUENCIES, patches)
    np.add(power, (floor / mean).astype(basis.dtype), out=logarithm)
    np.log(logarithm, out=logarithm)
    logarithm *= power
    weighted = constant * np.log(constant + floor) + varying * np.log(mean)
    weighted += mean * _weighted_sum(logarithm, basis)
    bits: NDArray[np.float64] = (np.log(total) * (total - EPSILON) - weighted) / (total * np.log(2.0))
    return bits


def _weighted_sum(values: NDArray[Any], basis: Basis) -> NDArray[np.float64]:
    """Returns the sum over all frequencies but the constant one; the sums of each 32 are added in float64."""
    inner = values[:_INNER].reshape(_HALF - 1, PATCH_SIDE, -1)
    runs = np.matmul(basis.weight[:PATCH_SIDE], inner).sum(axis=0, dtype=np.float64)
    total: NDArray[np.float64] = runs + basis.weight[_INNER:] @ values[_INNER:]
    return total


def _power(grey: NDArray[Any], basis: Basis, buffers: BandBuffers) -> NDArray[Any]:
    """Returns |FFT2|^2 as ``[514, patch]``, in the order of ``Basis.weight``."""
    patches = grey.shape[1]
    spectrum = buffers.spectrum[: _PIXELS * patches]
    lines = spectrum.reshape(PATCH_SIDE, PATCH_SIDE, patches)
    # [frequency k, y, patch]
    columns = buffers.columns[: _PIXELS * patches].reshape(PATCH_SIDE, PATCH_SIDE, patches)
    # A product with the transposed view takes longer than this copy and a plain product.
    np.copyto(lines.transpose(0, 2, 1), grey)
    np.matmul(basis.horizontal, lines, out=columns.transpose(1, 0, 2))
    inner = spectrum[: 2 * _INNER * patches].reshape(_HALF - 1, 2, PATCH_SIDE, patches)
    outer = spectrum[2 * _INNER * patches :].reshape(2, PATCH_SIDE, patches)
    np.matmul(basis.vertical, columns[2:].reshape(_HALF - 1, 1, 2 * PATCH_SIDE, patches), out=inner)
    np.matmul(basis.vertical_real, columns[:2], out=outer)
    np.multiply(spectrum, spectrum, out=spectrum)
    power = buffers.columns[: _FREQUENCIES * patches].reshape(_FREQUENCIES, patches)
    np.add(inner[:, 0], inner[:, 1], out=power[:_INNER].reshape(_HALF - 1, PATCH_SIDE, patches))
    power[_INNER : _INNER + 2] = outer[:, 0]
    power[_INNER + 2 : _INNER + 4] = outer[:, _HALF]
    pairs = power[_INNER + 4 :].reshape(2, _HALF - 1, patches)
    np.add(outer[:, 1:_HALF], outer[:, _HALF + 1 :], out=pairs)
    return power


@lru_cache(maxsize=2)
def basis_for(dtype: np.dtype[Any]) -> Basis:
    """Returns the constants in float32 or float64."""
    turns = np.outer(np.arange(PATCH_SIDE), np.arange(PATCH_SIDE)) % PATCH_SIDE
    cosine, sine = np.cos(turns * (2 * np.pi / PATCH_SIDE)), np.sin(turns * (2 * np.pi / PATCH_SIDE))
    horizontal = np.empty((PATCH_SIDE, _HALF, 2))
    horizontal[:, :, 0], horizontal[:, :, 1] = cosine[:, :_HALF], sine[:, :_HALF]
    horizontal[:, 0, 1] = cosine[:, _HALF]
    vertical = np.stack([np.hstack([cosine, -sine]), np.hstack([sine, cosine])])
    weight = np.full(_FREQUENCIES, 2.0)
    weight[_CONSTANT : _CONSTANT + 4] = 0.0, 1.0, 1.0, 1.0
    return Basis(
        dtype,
        np.array(GREY, dtype),
        np.ascontiguousarray(horizontal.reshape(PATCH_SIDE, PATCH_SIDE).T, dtype),
        vertical.astype(dtype),
        np.concatenate([cosine[: _HALF + 1], sine[1:_HALF]]).astype(dtype),
        weight.astype(dtype),
    )
