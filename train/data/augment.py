"""Augmentation in training, each draw a pure function of (seed, stage-relative epoch, key).

The mosaic is flipped; the picture, before its patches are selected, changes its scale, is blurred or goes
through JPEG. numpy only, and Pillow where one of the last three is on.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtime.patches.selection import mosaic_from_patches
from runtime.spec import PATCH_COUNT
from train.config import DataConfig
from train.data.degrade import blur, jpeg, resize
from train.data.order import random_source


def changes_pictures(config: DataConfig) -> bool:
    """Says whether pictures change before their patches are selected, so that patches differ by epoch."""
    return max(config.jpeg, config.blur, config.resize) > 0


def augment_image(
    image: NDArray[np.uint8], config: DataConfig, *, seed: int, epoch: int, key: str
) -> NDArray[np.uint8]:
    """Returns the picture as the epoch sees it: scaled, then blurred, then recompressed, each if drawn.

    Six numbers are drawn whatever is on, apart from the draws of the mosaic, so that a setting changes the
    pictures it names and nothing else. A scale that would leave a side under 32 pixels is raised until the
    shorter side has 32.

    Args:
        image: uint8 ``[H, W, 3]``.
        config: ``resize``, ``blur``, ``jpeg`` are probabilities; scale and sigma are uniform in their range,
            the quality uniform over the whole numbers of its range.
        seed: of the run.
        epoch: counted from 0 within its stage.
        key: the sample's.

    Returns:
        uint8 ``[h, w, 3]``.
    """
    # No key holds a NUL, so that this is no other sample's source.
    draws = random_source(seed, epoch, f"{key}\0picture").random(6)
    if draws[0] < config.resize:
        image = resize(image, _between(config.resize_scale, draws[1]))
    if draws[2] < config.blur:
        image = blur(image, _between(config.blur_sigma, draws[3]))
    if draws[4] < config.jpeg:
        low, high = config.jpeg_quality
        image = jpeg(image, low + math.floor(draws[5] * (high - low + 1)))
    return image


def augment_patches(
    patches: NDArray[np.uint8], config: DataConfig, *, seed: int, epoch: int, key: str
) -> NDArray[np.uint8]:
    """Returns the mosaic of one epoch: permuted, and mirrored half of the time where ``flip`` is on.

    Args:
        patches: uint8 ``[49, 32, 32, 3]``.
        config: for ``flip``.
        seed: of the run.
        epoch: counted from 0 within its stage.
        key: the sample's.

    Returns:
        uint8 ``[224, 224, 3]``, contiguous.
    """
    draw = random_source(seed, epoch, key)
    mosaic = mosaic_from_patches(patches, draw.permutation(PATCH_COUNT))
    if config.flip and draw.random() < 0.5:
        mosaic = np.ascontiguousarray(mosaic[:, ::-1])
    return mosaic


def _between(ends: tuple[float, ...], share: float) -> float:
    low, high = ends
    return low + float(share) * (high - low)
