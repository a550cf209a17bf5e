"""golden.npz: mosaics and their logits, which travel with a bundle; from a seed unless asked otherwise."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SpecError
from runtime.files import write_atomically
from runtime.spec import EMBEDDING_NAME, GRID_SIDE, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE, PATCH_SIDE

_SHAPE = (MOSAIC_SIDE, MOSAIC_SIDE, 3)
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first time stamp that a zip file can hold


def synthetic_mosaics(count: int = 16, seed: int = 0) -> NDArray[np.uint8]:
    """Returns uint8 [count, 224, 224, 3] pictures that are not alike: flat, noisy, smooth, striped, patched.

    The first two are all black and all white. ``RandomState`` is used because its numbers are frozen for all
    versions of NumPy.
    """
    random = np.random.RandomState(seed)
    kinds = (_noise, _gradient, _texture, _tiles, _stripes, _faint)
    extremes = [np.full(_SHAPE, value, np.uint8) for value in (0, 255)]
    made = [kinds[k % len(kinds)](random) for k in range(max(count - len(extremes), 0))]
    return np.stack([*extremes, *made])[:count]


def write_golden(
    path: Path, images: NDArray[np.uint8], logit: NDArray[np.float32], embedding: NDArray[np.float32]
) -> None:
    """Writes golden.npz; equal arrays give equal bytes on every machine.

    Args:
        path: the file; replaced in one step.
        images: uint8 [N, 224, 224, 3].
        logit: float32 [N].
        embedding: float32 [N, D].

    Raises:
        SpecError: a shape or type differs, or a number is not finite.
    """
    rows = len(images)
    width = embedding.shape[1] if embedding.ndim == 2 else 1
    expected: dict[str, tuple[NDArray[Any], Any, tuple[int, ...]]] = {
        INPUT_NAME: (images, np.uint8, (rows, *_SHAPE)),
        LOGIT_NAME: (logit, np.float32, (rows,)),
        EMBEDDING_NAME: (embedding, np.float32, (rows, width)),
    }
    content = io.BytesIO()
    # Stored, not deflated: what deflate makes of the same bytes differs between versions of zlib.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, (array, dtype, shape) in expected.items():
            if array.dtype != dtype or array.shape != shape or not rows:
                raise SpecError(
                    f"golden {name}: found {array.dtype} {list(array.shape)}, "
                    f"expected {np.dtype(dtype)} {list(shape)} with at least one row"
                )
            if not np.isfinite(array).all():
                raise SpecError(
                    f"golden {name}: found NaN or infinity, expected finite numbers; check the model"
                )
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _LONG_AGO)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, member.getvalue())
    write_atomically(path, content.getvalue())


def _plane(random: np.random.RandomState) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns coordinates in 0..1, turned by a random angle."""
    rows, columns = np.mgrid[0:MOSAIC_SIDE, 0:MOSAIC_SIDE] / MOSAIC_SIDE
    angle = random.uniform(0, np.pi)
    return rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle)


def _pixels(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _noise(random: np.random.RandomState) -> NDArray[np.uint8]:
    return random.randint(0, 256, _SHAPE).astype(np.uint8)


def _gradient(random: np.random.RandomState) -> NDArray[np.uint8]:
    along, _across = _plane(random)
    start, end = random.uniform(0, 255, (2, 3))
    return _pixels(start + along[..., None] * (end - start))


def _texture(random: np.random.RandomState) -> NDArray[np.uint8]:
    total = np.zeros(_SHAPE)
    for _ in range(4):
        along, across = _plane(random)
        low, high = random.uniform(1, 12, 2)
        phase = random.uniform(0, 2 * np.pi, 3)
        total += np.sin(2 * np.pi * (low * along + high * across)[..., None] + phase)
    return _pixels(127.5 + 30.0 * total)


def _tiles(random: np.random.RandomState) -> NDArray[np.uint8]:
    colours = random.randint(0, 256, (GRID_SIDE, GRID_SIDE, 3)).astype(np.float64)
    flat = colours.repeat(PATCH_SIDE, axis=0).repeat(PATCH_SIDE, axis=1)
    return _pixels(flat + random.normal(0, random.uniform(0, 20), _SHAPE))


def _stripes(random: np.random.RandomState) -> NDArray[np.uint8]:
    along, _across = _plane(random)
    dark, light = random.uniform(0, 255, (2, 3))
    return _pixels(np.where(np.floor(along * random.uniform(8, 60))[..., None] % 2, dark, light))


def _faint(random: np.random.RandomState) -> NDArray[np.uint8]:
    return _pixels(random.uniform(20, 235, 3) + random.normal(0, 1.5, _SHAPE))
