"""The gate's own preprocessing: file to mosaic without the runtime's decoder or patch selection.

The project has one preprocessing, and comparing it with itself would prove nothing: a channel swap or another
order of patches in the runtime would move both sides alike. So the gate holds a second one, written from
the method's definition in the plainest way (Pillow, one FFT a patch, a sort) and used for nothing else. The
counts and the permutation come from the checkpoint, not from the bundle under test.

It decodes what Pillow reads as bilevel, grey, RGB, palette, CMYK or 16-bit grey, with or without
transparency, by the rules that ``runtime.decode`` states: the first frame, upright, on white, the high byte
of 16 bits. What is left (HEIC, Lab, 32-bit samples, files that end early where those are allowed) takes the
runtime's decoder here too, and is counted: its decoding is not checked, its patch selection is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.decode import FORMATS, DecodeLimits, decode_image
from runtime.errors import ImageError
from runtime.spec import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

_OPAQUE_MODES = ("1", "L", "RGB", "P", "CMYK")
_LAYERED_MODES = ("LA", "RGBA")
_WHITE = 255
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


def reference_mosaic(
    path: Path, preprocessing: Preprocessing, limits: DecodeLimits | None = None
) -> ReferenceMosaic:
    """Returns the mosaic of a file, made independently of the runtime.

    Args:
        path: the file.
        preprocessing: counts and permutation.
        limits: which files are accepted; None for the default ones.

    Raises:
        ImageError: the file cannot be read or is smaller than one patch.
    """
    image, is_independent = reference_pixels(path, limits)
    return ReferenceMosaic(mosaic_from_image(image, preprocessing, str(path)), is_independent)


def reference_pixels(path: Path, limits: DecodeLimits | None = None) -> tuple[NDArray[np.uint8], bool]:
    """Returns a file's pixels, uint8 ``[H, W, 3]``, and whether the runtime had no part in decoding them.

    Args:
        path: the file.
        limits: which files are accepted; None for the default ones.

    Raises:
        ImageError: the file cannot be read.
    """
    limits = limits or DecodeLimits()
    image = _plain_pixels(path, limits)
    return (decode_image(path, **vars(limits)), False) if image is None else (image, True)


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
    """Spectral entropy in bits, as in ``runtime.patches.entropy.patch_entropy``. Source: arXiv 2511.13108."""
    entropies = []
    for start in range(0, len(patches), _AT_ONCE):
        part = patches[start : start + _AT_ONCE].astype(np.float64)
        grey = 0.299 * part[..., 0] + 0.587 * part[..., 1] + 0.114 * part[..., 2]
        power = np.abs(np.fft.fft2(grey)) ** 2
        share = power / (power.sum(axis=(1, 2), keepdims=True) + _EPSILON)
        entropies.append(-(share * np.log2(share + _EPSILON)).sum(axis=(1, 2)))
    return np.round(np.concatenate(entropies), _DECIMALS)


def _plain_pixels(path: Path, limits: DecodeLimits) -> NDArray[np.uint8] | None:
    """Returns a picture's pixels, None where the rules here do not reach or Pillow does not read it."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the runtime accepts.
            warnings.simplefilter("ignore")
            # Formats and sizes that the runtime refuses have no verdict, and some formats start a program.
            with Image.open(path, formats=(*FORMATS, "MPO")) as opened:
                is_large = opened.width * opened.height > limits.max_pixels
                if is_large or max(opened.size) > limits.max_side:
                    return None
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
    except Exception:  # Pillow raises many kinds on damaged files; the runtime's decoder then says what it is
        return None


def _rgb(image: Image.Image) -> NDArray[np.uint8] | None:
    """Returns uint8 ``[H, W, 3]``; None of a mode for which no rule stands here."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        samples = np.asarray(image).astype(np.int64)
        grey = samples // 256
        if isinstance(key, int):
            grey[samples == key] = _WHITE
        return np.repeat(grey.astype(np.uint8)[..., np.newaxis], 3, axis=2)
    if image.mode in _LAYERED_MODES or (key is not None and image.mode in _OPAQUE_MODES):
        layered = np.asarray(image.convert("RGBA")).astype(np.int64)
        colour, alpha = layered[..., :3], layered[..., 3:]
        # Rounded to the nearest: 255 is odd, so no value lies half-way.
        return ((colour * alpha + _WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.asarray(image.convert("RGB")) if image.mode in _OPAQUE_MODES else None
