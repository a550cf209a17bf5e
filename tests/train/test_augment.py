"""Augmentation: its draws, its probabilities, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.patches.selection import mosaic_from_patches
from train.config import TrainConfig
from train.config.sections import DataConfig
from train.data import augment
from train.data.augment import augment_image, augment_patches, changes_pictures
from train.data.degrade import blur, jpeg, resize

KEYS = [f"train/a/0_real/{index}.png" for index in range(200)]
# What these seeds, epochs and keys have always given: runs of earlier versions are reproduced by it.
QUALITIES = [34, 51, 56, 65, 63]
PERMUTATION = [22, 10, 26, 42, 2, 24, 36]


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def settings(**values: object) -> DataConfig:
    return TrainConfig().with_values((f"data.{key}", value) for key, value in values.items()).data


def test_augment_image__is_off_by_default(image: NDArray[np.uint8]) -> None:
    assert not changes_pictures(settings())
    assert all(augment_image(image, settings(), seed=1, epoch=0, key=key) is image for key in KEYS[:20])


@pytest.mark.parametrize("name", ["jpeg", "blur", "resize"])
def test_augment_image__changes_its_share_of_pictures(image: NDArray[np.uint8], name: str) -> None:
    config = settings(**{name: 0.3})
    assert changes_pictures(config)
    seen = [augment_image(image, config, seed=1, epoch=0, key=key) for key in KEYS]
    changed = [not np.array_equal(found, image) for found in seen]
    assert 35 <= sum(changed) <= 85  # 60 of 200, standard deviation 6.5
    again = [augment_image(image, config, seed=1, epoch=0, key=key) for key in KEYS]
    assert all(np.array_equal(a, b) for a, b in zip(seen, again, strict=True))
    for seed, epoch in ((1, 1), (2, 0)):
        other = [augment_image(image, config, seed=seed, epoch=epoch, key=key) is not image for key in KEYS]
        assert other != changed


def test_augment_image__applies_scale_then_blur_then_jpeg(image: NDArray[np.uint8]) -> None:
    config = settings(
        jpeg=1, jpeg_quality="40,40", blur=1, blur_sigma="1.5,1.5", resize=1, resize_scale="0.75,0.75"
    )
    found = augment_image(image, config, seed=1, epoch=0, key="k")
    assert np.array_equal(found, jpeg(blur(resize(image, 0.75), 1.5), 40))


def test_augment_image__draws_over_the_whole_range(
    image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[float]] = {"jpeg": [], "blur": [], "resize": []}
    for name, values in drawn.items():
        monkeypatch.setattr(augment, name, lambda image, value, to=values: to.append(value) or image)
    config = settings(
        jpeg=1, jpeg_quality="30,100", blur=1, blur_sigma="0.5,2", resize=1, resize_scale="0.5,1"
    )
    for key in KEYS:
        augment_image(image, config, seed=1, epoch=0, key=key)
    assert drawn["jpeg"][:5] == QUALITIES
    assert min(drawn["jpeg"]) == 30
    assert max(drawn["jpeg"]) == 100
    counts = np.bincount((np.array(drawn["jpeg"], dtype=int) - 30) // 24)
    assert all(45 <= count <= 90 for count in counts)
    for name, low, high in (("blur", 0.5, 2.0), ("resize", 0.5, 1.0)):
        values = np.array(drawn[name])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    # Independent of one another: the quality says nothing about the scale.
    assert abs(np.corrcoef(drawn["jpeg"], drawn["resize"])[0, 1]) < 0.2


def test_augment_image__keeps_a_patch_in_small_pictures() -> None:
    small = np.zeros((40, 33, 3), dtype=np.uint8)
    config = settings(resize=1, resize_scale="0.1,0.1")
    assert min(augment_image(small, config, seed=0, epoch=0, key="k").shape[:2]) == 32


def test_augment_patches__draws_the_literal_permutation_whatever_is_on() -> None:
    patches = np.repeat(np.arange(49, dtype=np.uint8), 32 * 32 * 3).reshape(49, 32, 32, 3)
    for config in (settings(flip=False), settings(flip=False, jpeg=1, blur=1, resize=1)):
        mosaic = augment_patches(patches, config, seed=3, epoch=1, key="train/a/0_real/1.png")
        assert mosaic[0, ::32, 0].tolist() == PERMUTATION
    flipped = augment_patches(patches, settings(), seed=3, epoch=1, key="train/a/0_real/1.png")
    assert np.array_equal(flipped, mosaic[:, ::-1])  # the draw of this key is below one half
    assert not np.array_equal(mosaic, mosaic_from_patches(patches))
