"""The caller's own pictures as golden mosaics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.decode import decode_image
from runtime.errors import DataError, ImageError
from runtime.patches import select_patches
from runtime.scan import SUFFIXES

MIN_COUNT, MAX_COUNT = 16, 256


def golden_mosaics(folder: Path) -> NDArray[np.uint8]:
    """Returns the mosaics of the pictures below a folder, uint8 ``[N, 224, 224, 3]``, sorted by path.

    Raises:
        DataError: fewer than 16 or more than 256 pictures, or one that cannot be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not MIN_COUNT <= len(paths) <= MAX_COUNT:
        raise DataError(f"{folder}: found {len(paths)} pictures, expected {MIN_COUNT} to {MAX_COUNT}")
    mosaics = []
    for path in paths:
        try:
            mosaics.append(select_patches(decode_image(path)))
        except ImageError as err:
            raise DataError(str(err)) from err
    return np.stack(mosaics)
