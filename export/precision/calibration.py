"""The caller's pictures as calibration mosaics. They are looked at and never stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.console import Progress
from runtime.errors import DataError, ImageError
from runtime.pictures.mosaics import mosaic_from_file, picture_files
from runtime.spec import MOSAIC_SIDE

MAX_COUNT = 1024  # 150 MB of mosaics


def calibration_mosaics(folder: Path) -> NDArray[np.uint8]:
    """Returns the mosaics of the pictures below a folder, uint8 ``[N, 224, 224, 3]``, sorted by path.

    Decoding, patch selection and permutation are the runtime's own.

    Raises:
        DataError: no folder, no picture, more than 1024, or one that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: found no such folder, expected one with calibration pictures")
    paths = picture_files(folder)
    if not 1 <= len(paths) <= MAX_COUNT:
        raise DataError(f"{folder}: found {len(paths)} pictures, expected 1 to {MAX_COUNT} for calibration")
    mosaics = np.empty((len(paths), MOSAIC_SIDE, MOSAIC_SIDE, 3), dtype=np.uint8)
    with Progress("calibration pictures", len(paths)) as progress:
        for k, path in enumerate(paths):
            try:
                mosaics[k] = mosaic_from_file(path)
            except ImageError as err:
                raise DataError(f"calibration picture: {err}; repair it or take it out") from err
            progress.advance()
    return mosaics
