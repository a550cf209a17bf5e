"""The pixels of a picture, read a rectangle at a time, wherever they are: an array, or inside Pillow.

What cuts patches reads through this, so that a large picture never has to be copied into an array as a whole.
numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.spec import PATCH_SIDE

if TYPE_CHECKING:
    from typing import TypeAlias


class Pixels(Protocol):
    """A picture of ``height`` rows and ``width`` columns; several threads may read it at once."""

    @property
    def height(self) -> int:
        """How many rows there are."""

    @property
    def width(self) -> int:
        """How many columns there are."""

    def box(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Returns uint8 ``[bottom - top, right - left, 3]``, RGB, with any strides; not to be written to."""

    def patches(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the patches at row-major indices, uint8 ``[N, 32, 32, 3]``, contiguous, a copy."""


if TYPE_CHECKING:
    # What patch selection takes: uint8 [H, W, 3], or anything that gives out rectangles of it.
    Picture: TypeAlias = NDArray[np.uint8] | Pixels


class ArrayPixels:
    """An array as ``Pixels``; rectangles are views of it.

    Args:
        array: uint8 ``[H, W, 3]``, with any strides.

    Raises:
        ImageError: it is something else.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ImageError(f"found {array.dtype} {list(array.shape)}, expected uint8 [H, W, 3]")
        self._array = array

    @property
    def height(self) -> int:
        """How many rows there are."""
        return int(self._array.shape[0])

    @property
    def width(self) -> int:
        """How many columns there are."""
        return int(self._array.shape[1])

    def box(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Returns a view, uint8 ``[bottom - top, right - left, 3]``."""
        return self._array[top:bottom, left:right]

    def patches(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the patches at row-major indices, uint8 ``[N, 32, 32, 3]``, contiguous, a copy."""
        rows, columns = self.height // PATCH_SIDE, self.width // PATCH_SIDE
        whole = self._array[: rows * PATCH_SIDE, : columns * PATCH_SIDE]
        # Splitting axes is a view whatever the strides are.
        cells = whole.reshape(rows, PATCH_SIDE, columns, PATCH_SIDE, 3)
        chosen: NDArray[np.uint8] = cells[indices // columns, :, indices % columns]
        return np.ascontiguousarray(chosen)


def pixels_of(picture: Picture) -> Pixels:
    """Returns the picture as ``Pixels``.

    Raises:
        ImageError: it is an array, and not uint8 ``[H, W, 3]``.
    """
    return ArrayPixels(picture) if isinstance(picture, np.ndarray) else picture


def patch_grid(picture: Picture) -> tuple[int, int]:
    """Returns how many rows and columns of whole patches a picture has.

    Raises:
        ImageError: not uint8 ``[H, W, 3]``, or a side under 32 pixels.
    """
    pixels = pixels_of(picture)
    if min(pixels.height, pixels.width) < PATCH_SIDE:
        raise ImageError(
            f"found {pixels.width} x {pixels.height} pixels, expected at least {PATCH_SIDE} on each side; "
            "use a larger original, not an enlarged copy"
        )
    return pixels.height // PATCH_SIDE, pixels.width // PATCH_SIDE
