"""The caller's own pictures as golden mosaics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError, ImageError
from runtime.pictures.mosaics import mosaic_from_file, picture_files

MIN_COUNT, MAX_COUNT = 16, 256


def golden_mosaics(folder: Path) -> NDArray[np.uint8]:
    """Returns the mosaics of the pictures below a folder, uint8 ``[N, 224, 224, 3]``, sorted by path.

    Raises:
        DataError: fewer than 16 or more than 256 pictures, or one that cannot be read.
    """
    paths = picture_files(folder)
    if not MIN_COUNT <= len(paths) <= MAX_COUNT:
        raise DataError(f"{folder}: found {len(paths)} pictures, expected {MIN_COUNT} to {MAX_COUNT}")
    try:
        return np.stack([mosaic_from_file(path) for path in paths])
    except ImageError as err:
        raise DataError(f"golden pictures: {err}") from err
