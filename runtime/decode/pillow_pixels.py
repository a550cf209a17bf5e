"""A decoded Pillow picture as ``Pixels``: upright RGB rectangles, converted when they are asked for.

Pillow holds RGB in 4 bytes a pixel. Turned and converted as a whole it would be there two to four times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.decode.colour import conversion_for
from runtime.errors import ImageError, ImageReadError, one_line
from runtime.spec import PATCH_SIDE

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION_TAG = 0x0112
# For each EXIF orientation: whether the stored rows, then the stored columns, are in reverse order, and
# whether rows and columns then change places.
_TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
# How much of a picture is converted at once.
_BAND_PIXELS = 1 << 18


class PillowPixels:
    """A picture inside Pillow; rectangles are copies. Several threads may read it at once.

    Args:
        image: a picture whose pixels have been decoded; it is only read.
        name: for messages.

    Raises:
        ImageError: its pixels cannot become RGB.
    """

    def __init__(self, image: Image.Image, name: str) -> None:
        self._image = image
        self._name = name
        self._rgb = conversion_for(image, name)
        # Asked after decoding: Pillow itself turns a TIFF while it decodes it.
        self._flip_rows, self._flip_columns, self._swap = _TURNS.get(_orientation(image), (False,) * 3)
        self._size = image.size[::-1] if self._swap else image.size

    @property
    def height(self) -> int:
        """How many rows there are, upright."""
        return self._size[1]

    @property
    def width(self) -> int:
        """How many columns there are, upright."""
        return self._size[0]

    def box(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Returns uint8 ``[bottom - top, right - left, 3]``.

        Raises:
            ImageError: Pillow cannot convert it, or memory is short.
        """
        rows, columns = (top, bottom), (left, right)
        if self._swap:
            rows, columns = columns, rows
        width, height = self._image.size
        if self._flip_rows:
            rows = height - rows[1], height - rows[0]
        if self._flip_columns:
            columns = width - columns[1], width - columns[0]
        try:
            pixels = np.asarray(self._rgb(_part(self._image, (columns[0], rows[0], columns[1], rows[1]))))
        except MemoryError as err:
            raise ImageReadError(f"{self._name}: not enough memory for {width} x {height} pixels") from err
        except Exception as err:  # a palette may lie about its length, a mode may have no way to RGB
            raise ImageError(f"{self._name}: its pixels cannot become RGB ({one_line(err)})") from err
        if self._flip_rows:
            pixels = pixels[::-1]
        if self._flip_columns:
            pixels = pixels[:, ::-1]
        return pixels.swapaxes(0, 1) if self._swap else pixels

    def patches(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the patches at row-major indices, uint8 ``[N, 32, 32, 3]``; neighbours are read at once."""
        columns = self.width // PATCH_SIDE
        patches = np.empty((len(indices), PATCH_SIDE, PATCH_SIDE, 3), np.uint8)
        is_start = np.ones(len(indices), np.bool_)
        is_start[1:] = (np.diff(indices) != 1) | (indices[1:] % columns == 0)
        starts = np.flatnonzero(is_start)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(indices)], strict=True):
            row, column = divmod(int(indices[start]), columns)
            top, left = row * PATCH_SIDE, column * PATCH_SIDE
            run = self.box(top, top + PATCH_SIDE, left, left + PATCH_SIDE * (end - start))
            patches[start:end] = run.reshape(PATCH_SIDE, -1, PATCH_SIDE, 3).transpose(1, 0, 2, 3)
        return patches

    def whole(self) -> NDArray[np.uint8]:
        """Returns all of it, uint8 ``[height, width, 3]``, contiguous.

        Raises:
            ImageError: as ``box``.
        """
        try:
            pixels = np.empty((self.height, self.width, 3), np.uint8)
        except MemoryError as err:
            raise ImageReadError(
                f"{self._name}: not enough memory for {self.width} x {self.height} pixels"
            ) from err
        rows = max(1, _BAND_PIXELS // self.width)
        for top in range(0, self.height, rows):
            bottom = min(top + rows, self.height)
            pixels[top:bottom] = self.box(top, bottom, 0, self.width)
        return pixels


def _part(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    # What Image.crop does, but for a look at the process-wide pixel limit that Pillow 11 takes there.
    part: Image.Image = image._new(image.im.crop(box))
    return part


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # free-form bytes beside intact pixels: viewers ignore what they cannot parse
        return 1
    return orientation if isinstance(orientation, int) else 1
