"""The pictures that parity looks at, with label and generator where the folders tell.

Folder names are those of training and evaluation: ``<generator>/{0_real,1_fake}/`` or ``{real,fake}/``. A
picture elsewhere has no label: it takes part in every comparison but AP and AUROC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError
from runtime.pictures.mosaics import picture_files

LABEL_FOLDERS = {"0_real": 0, "1_fake": 1, "real": 0, "fake": 1}
UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Picture:
    """One item of the comparison.

    Attributes:
        name: path below the data folder with forward slashes, or "golden <k>".
        label: 0 real, 1 generated, -1 unknown.
        generator: folder above the label folder; of an unlabelled picture its own folder.
        path: its file, None for a golden mosaic.
    """

    name: str
    label: int
    generator: str
    path: Path | None


def pictures_below(folder: Path) -> list[Picture]:
    """Returns the pictures below a folder, sorted by path.

    Raises:
        DataError: none there, or the folder is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected a folder of pictures")
    paths = picture_files(folder)
    if not paths:
        raise DataError(f"{folder}: found no pictures below it, expected a folder of pictures")
    return [_picture(path, folder) for path in paths]


def golden_pictures(count: int) -> list[Picture]:
    """Returns the items that stand for a bundle's golden mosaics."""
    return [Picture(f"golden {k}", UNLABELLED, "golden", None) for k in range(count)]


def labels_of(pictures: list[Picture]) -> NDArray[np.int64]:
    """Returns the labels, int64 ``[N]``, -1 where unknown."""
    return np.array([picture.label for picture in pictures], dtype=np.int64)


def _picture(path: Path, folder: Path) -> Picture:
    below = path.relative_to(folder)
    label = LABEL_FOLDERS.get(path.parent.name, UNLABELLED)
    place = path.parent.parent if label != UNLABELLED else path.parent
    generator = place.name if place != folder.parent and place.name else folder.resolve().name
    if place == folder:
        generator = folder.resolve().name
    return Picture(below.as_posix(), label, generator, path)
