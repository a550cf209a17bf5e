"""Picture files as mosaics: which files below a folder are pictures, and one file's mosaic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import ImageError
from runtime.scan import SUFFIXES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def picture_files(folder: Path) -> list[Path]:
    """Returns the regular files below a folder whose suffix says that they are pictures, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def mosaic_from_file(path: Path, **options: Any) -> NDArray[np.uint8]:
    """Decodes one file and returns its mosaic, uint8 ``[224, 224, 3]``, with inference's permutation.

    Args:
        path: the file.
        **options: as ``decode_image`` takes them.

    Raises:
        ImageError: the file cannot be read or is too small; the message names it.
    """
    from runtime.decode import decode_image
    from runtime.patches import select_patches

    image = decode_image(path, **options)
    try:
        return select_patches(image)
    except ImageError as err:
        raise ImageError(f"{path}: {err}") from err
