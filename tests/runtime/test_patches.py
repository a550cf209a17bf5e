"""Patch selection against vectors of an independent float64 reference, and its edges."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ImageError, SpecError
from runtime.patches import (
    mosaic_from_patches,
    patch_entropy,
    select_patches,
    selected_indices,
    selected_patches,
)
from runtime.spec import PERMUTATION

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted(DATA.glob("patches_*.npz"))
IDENTITY = range(49)


def slow_entropy(image: np.ndarray) -> np.ndarray:
    """The definition, one patch at a time, with the whole spectrum."""
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    entropy = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = image[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32].astype(np.float64)
            grey = 0.299 * patch[..., 0] + 0.587 * patch[..., 1] + 0.114 * patch[..., 2]
            power = np.abs(np.fft.fft2(grey)) ** 2
            share = power / (power.sum() + 1e-12)
            entropy[row, column] = -(share * np.log2(share + 1e-12)).sum()
    return entropy


def test_golden__are_all_there() -> None:
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_select_patches__equals_golden(path: Path) -> None:
    with np.load(path, allow_pickle=False) as golden:
        image, expected = golden["image"], {k: golden[k] for k in ("entropy", "indices", "mosaic")}
    entropy = patch_entropy(image)
    assert entropy.dtype == np.float64
    assert entropy.shape == (image.shape[0] // 32, image.shape[1] // 32)
    assert np.abs(entropy.reshape(-1) - expected["entropy"]).max() <= 1e-9
    assert np.array_equal(selected_indices(entropy), expected["indices"])
    assert np.array_equal(select_patches(image, permutation=IDENTITY), expected["mosaic"])


def test_select_patches__default_is_the_literal_permutation(picture: np.ndarray) -> None:
    patches = selected_patches(picture)
    mosaic = select_patches(picture)
    for cell, source in enumerate(PERMUTATION):
        top, left = cell // 7 * 32, cell % 7 * 32
        assert np.array_equal(mosaic[top : top + 32, left : left + 32], patches[source]), cell
    assert not np.array_equal(mosaic, select_patches(picture, permutation=IDENTITY))


@pytest.mark.parametrize("shape", [(32, 32), (32, 2208), (2208, 32), (63, 97), (333, 1000)], ids=str)
def test_patch_entropy__equals_the_definition_at_any_shape(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.abs(patch_entropy(image) - slow_entropy(image)).max() <= 1e-9


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_patch_entropy__of_flat_patches_is_plain_zero(value: int) -> None:
    entropy = patch_entropy(np.full((64, 96, 3), value, dtype=np.uint8))
    assert np.array_equal(entropy, np.zeros((2, 3)))
    assert not np.signbit(entropy).any()


def test_patch_entropy__depends_on_grey_weights() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    images = [np.zeros((32, 32, 3), dtype=np.uint8) for _ in range(2)]
    images[0][..., 0], images[0][..., 1] = noise, 200
    images[1][..., 1], images[1][..., 0] = noise, 200
    assert abs(patch_entropy(images[0]) - patch_entropy(images[1])).item() > 0.1


def test_selected_indices__ties_go_to_the_lower_index() -> None:
    entropy = np.zeros((8, 8))
    assert selected_indices(entropy).tolist() == [*range(24), *range(39, 64)]
    many = np.random.default_rng(4).integers(0, 3, 5000).astype(np.float64)
    order = sorted(range(5000), key=lambda index: many[index])
    assert selected_indices(many.reshape(50, 100)).tolist() == order[:24] + order[-25:]


def test_selected_indices__of_few_patches_repeats_all_of_them() -> None:
    order = [3, 1, 0, 2]
    entropy = np.array([[2.0, 1.0], [3.0, 0.5]])
    assert selected_indices(entropy).tolist() == (order * 13)[:49]


def test_select_patches__of_one_patch_fills_every_cell() -> None:
    image = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mosaic = select_patches(image)
    assert mosaic.shape == (224, 224, 3)
    assert np.array_equal(mosaic, np.tile(image[:32, :32], (7, 7, 1)))


def test_select_patches__ignores_what_is_beyond_the_grid(picture: np.ndarray) -> None:
    padded = np.pad(picture, ((0, 31), (0, 17), (0, 0)), constant_values=77)
    assert np.array_equal(select_patches(padded), select_patches(picture))


def test_select_patches__takes_views_with_any_strides(picture: np.ndarray) -> None:
    view = np.asfortranarray(picture)[::-1, ::-1]
    assert np.array_equal(select_patches(view), select_patches(np.ascontiguousarray(view)))


def test_select_patches__is_the_same_in_every_thread(picture: np.ndarray) -> None:
    expected = select_patches(picture)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: select_patches(picture), range(40)))
    assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.parametrize("shape", [(31, 400, 3), (400, 31, 3), (1, 400, 3), (400, 1, 3)], ids=str)
def test_select_patches__refuses_a_side_under_32(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ImageError, match=f"found {shape[1]} x {shape[0]} pixels, expected at least 32"):
        select_patches(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8)]
)
def test_select_patches__refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \[H, W, 3\]"):
        select_patches(image)


@pytest.mark.parametrize("permutation", [range(48), [0] * 49, range(1, 50), [-1, *range(1, 49)]], ids=str)
def test_mosaic_from_patches__refuses_what_is_no_permutation(permutation: list[int]) -> None:
    with pytest.raises(SpecError, match="exactly once"):
        mosaic_from_patches(np.zeros((49, 32, 32, 3), np.uint8), permutation)
