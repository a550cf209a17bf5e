"""The gate's own preprocessing: file to mosaic without the runtime's decoder or patch selection.

The project has one preprocessing, and comparing it with itself would prove nothing: a channel swap or another
order of patches in the runtime would move both sides alike. So the gate holds a second one, written from
the method's definition in the plainest way (Pillow, one FFT a patch, a sort) and used for nothing else. The
counts and the permutation come from the checkpoint, not from the bundle under test.

It decodes 8-bit RGB and grey pictures, which is what data sets hold. For palettes, transparency, CMYK, 16-bit
samples and the like, rules are a choice, so those pictures take the runtime's decoder here too, and are
counted: their decoding is not checked, their patch selection is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.decode import decode_image
from runtime.errors import ImageError
from runtime.spec import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

_PLAIN_MODES = ("RGB", "L")
_ORIENTATION_TAG = 0x0112
_DECIMALS = 9
_EPSILON = 1e-12
# Patches transformed at once: 256 of them take 4 MiB as complex numbers, however large the picture is.
_AT_ONCE = 256


@dataclass(frozen=True)
class ReferenceMosaic:
    """One picture as the model should see it.

    Attributes:
        pixels: uint8 ``[224, 224, 3]``.
        is_independent: whether decoding was independent of the runtime's.
    """

    pixels: NDArray[np.uint8]
    is_independent: bool


def reference_mosaic(path: Path, preprocessing: Preprocessing) -> ReferenceMosaic:
    """Returns the mosaic of a file, made independently of the runtime.

    Raises:
        ImageError: the file cannot be read or is smaller than one patch.
    """
    image = _plain_pixels(path)
    is_independent = image is not None
    if image is None:
        image = decode_image(path)
    return ReferenceMosaic(mosaic_from_image(image, preprocessing, str(path)), is_independent)


def mosaic_from_image(
    image: NDArray[np.uint8], preprocessing: Preprocessing, name: str = "image"
) -> NDArray[np.uint8]:
    """Returns the mosaic of decoded pixels, uint8 ``[224, 224, 3]``.

    Raises:
        ImageError: a side is shorter than a patch.
    """
    side = preprocessing.patch
    rows, columns = image.shape[0] // side, image.shape[1] // side
    if not rows or not columns:
        raise ImageError(
            f"{name}: found {image.shape[1]} x {image.shape[0]} pixels, expected at least {side} x {side}"
        )
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    patches = cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, side, side, 3)
    order = np.argsort(_entropies(patches), kind="stable")
    count = preprocessing.lowest + preprocessing.highest
    if len(order) >= count:
        taken = np.concatenate([order[: preprocessing.lowest], order[-preprocessing.highest :]])
    else:
        taken = np.resize(order, count)
    cells = patches[taken[np.array(preprocessing.permutation)]]
    grid = int(count**0.5)
    mosaic = cells.reshape(grid, grid, side, side, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(mosaic.reshape(grid * side, grid * side, 3))


def _entropies(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Spectral entropy in bits, as in ``runtime.entropy.patch_entropy``. Source: arXiv 2511.13108."""
    entropies = []
    for start in range(0, len(patches), _AT_ONCE):
        part = patches[start : start + _AT_ONCE].astype(np.float64)
        grey = 0.299 * part[..., 0] + 0.587 * part[..., 1] + 0.114 * part[..., 2]
        power = np.abs(np.fft.fft2(grey)) ** 2
        share = power / (power.sum(axis=(1, 2), keepdims=True) + _EPSILON)
        entropies.append(-(share * np.log2(share + _EPSILON)).sum(axis=(1, 2)))
    return np.round(np.concatenate(entropies), _DECIMALS)


def _plain_pixels(path: Path) -> NDArray[np.uint8] | None:
    """Returns the pixels of a plain 8-bit picture, None of any other or of one that Pillow does not read."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Size limits are the runtime's to enforce: what it refuses has no verdict to compare.
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                if not _is_plain(opened):
                    return None
                opened.load()
                return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except Exception:  # Pillow raises many kinds on damaged files; the runtime's decoder then says what it is
        return None


def _is_plain(image: Image.Image) -> bool:
    return image.mode in _PLAIN_MODES and "transparency" not in image.info and image.format != "TIFF"
