"""Patch selection against vectors of an independent float64 reference, a float64 loop, and its edges."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.patch_selection.measuring import loop_selection
from runtime.errors import ImageError, SpecError
from runtime.patches import selection
from runtime.patches.selection import (
    chosen_indices,
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
MIB = 2**20


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
    assert np.array_equal(chosen_indices(image), expected["indices"])
    assert np.array_equal(select_patches(image, permutation=IDENTITY), expected["mosaic"])


def random_tiles(draw: np.random.Generator, shape: tuple[int, int], kinds: int) -> np.ndarray:
    """A few patches, repeated in random order: exact ties wherever one looks."""
    tiles = draw.integers(0, 256, (kinds, 32, 32, 3), dtype=np.uint8)
    tiles[0] = draw.integers(0, 256)
    tiles[-1] = tiles[-1][::-1]
    chosen = tiles[draw.integers(0, kinds, shape)]
    return chosen.transpose(0, 2, 1, 3, 4).reshape(shape[0] * 32, shape[1] * 32, 3)


def flat_patches(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Every patch of one colour of its own: all entropies are 0, and what is chosen shows."""
    return draw.integers(0, 256, (*shape, 3), dtype=np.uint8).repeat(32, axis=0).repeat(32, axis=1)


def near_ties(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """One noisy patch everywhere, one pixel of each changed by one level."""
    image = np.tile(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8), (*shape, 1))
    for row in range(shape[0]):
        for column in range(shape[1]):
            y, x = draw.integers(0, 32, 2)
            image[row * 32 + y, column * 32 + x, 1] ^= 1
    return image


def page(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Print on white: most patches tie at 0, a few do not."""
    image = np.full((shape[0] * 32, shape[1] * 32, 3), 255, np.uint8)
    left = shape[1] * 20
    image[:, left:] = draw.integers(0, 256, image[:, left:].shape, dtype=np.uint8)
    return image


def blocks(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """8 x 8 blocks of one cosine each, as JPEG leaves them at low quality."""
    x = (2 * np.arange(8) + 1) * np.pi / 16
    u, v = draw.integers(0, 3, (2, shape[0] * 4, shape[1] * 4))
    waves = np.cos(u[..., None, None] * x[:, None]) * np.cos(v[..., None, None] * x[None, :])
    pixels = 128 + draw.integers(-2, 3, u.shape)[..., None, None] * 12 * waves
    image = pixels.transpose(0, 2, 1, 3).reshape(shape[0] * 32, shape[1] * 32)
    return image.astype(np.uint8)[..., None].repeat(3, axis=2)


def enlarged(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    small = draw.integers(0, 256, (shape[0] * 4, shape[1] * 4, 3), dtype=np.uint8)
    return small.repeat(8, axis=0).repeat(8, axis=1)


def faint(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    image = np.full((shape[0] * 32, shape[1] * 32, 3), draw.integers(0, 255), np.uint8)
    return image + (draw.random(image.shape) < draw.choice([0.0005, 0.01, 0.5])).astype(np.uint8)


def waves(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A plane wave with a whole number of periods in a patch: equal patches, entropies of a few bits."""
    rows, columns = np.mgrid[0 : shape[0] * 32, 0 : shape[1] * 32]
    phase = (
        rows * draw.integers(0, 17) + columns * draw.integers(0, 17) + draw.integers(0, 2) * (columns // 64)
    )
    return (127 + 90 * np.cos(2 * np.pi / 32 * phase)).astype(np.uint8)[..., None].repeat(3, axis=2)


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "noise": lambda draw, shape: draw.integers(0, 256, (shape[0] * 32, shape[1] * 32, 3), dtype=np.uint8),
    "two levels": lambda draw, shape: 255 * draw.integers(0, 2, (shape[0] * 32, shape[1] * 32, 3), np.uint8),
    "two tiles": lambda draw, shape: random_tiles(draw, shape, 2),
    "twenty tiles": lambda draw, shape: random_tiles(draw, shape, 20),
    "flat patches": flat_patches,
    "near ties": near_ties,
    "page": page,
    "blocks": blocks,
    "enlarged": enlarged,
    "faint": faint,
    "waves": waves,
}


@pytest.mark.parametrize("shape", [(5, 10), (9, 16), (24, 25)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_chosen_indices__equals_the_float64_loop(kind: str, shape: tuple[int, int]) -> None:
    for seed in range(3):
        image = KINDS[kind](np.random.default_rng(seed), shape)
        assert np.array_equal(chosen_indices(image), loop_selection(image)), seed


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3),
    rows=st.integers(3, 8),
    columns=st.integers(4, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_chosen_indices__equals_the_float64_loop_on_what_hypothesis_draws(
    kinds: list[str], rows: int, columns: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    image = np.concatenate([KINDS[kind](draw, (rows, columns)) for kind in kinds])
    image = np.pad(image, ((0, seed % 31), (0, seed % 29), (0, 0)))
    expected = selected_indices(patch_entropy(image))
    if expected.size == np.unique(expected).size:
        assert np.array_equal(expected, loop_selection(image))
    assert np.array_equal(chosen_indices(image), expected)


def test_chosen_indices__would_be_wrong_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [near_ties(np.random.default_rng(seed), (9, 16)) for seed in range(4)]
    expected = [loop_selection(image) for image in images]
    for image, indices in zip(images, expected, strict=True):
        assert np.array_equal(chosen_indices(image), indices)
    # Not a property of the code but of the pictures: they are able to find the mistake.
    monkeypatch.setattr(selection, "_close_to_another", lambda _entropy, _candidates: np.array([], np.int64))
    assert not any(np.array_equal(chosen_indices(i), e) for i, e in zip(images, expected, strict=True))


@pytest.mark.parametrize("low", [0, 255], ids=["stripes", "white"])
def test_select_patches__of_100_megapixels_of_ties_takes_little_memory(low: int) -> None:
    stripes = np.random.default_rng(0).integers(low, 256, (32, 3), dtype=np.uint8)
    # One line of pixels serves as every line, so that the picture itself takes no memory here.
    image = np.broadcast_to(np.tile(stripes, (384, 1)), (8192, 12288, 3))
    tracemalloc.start()
    select_patches(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 24 * MIB


def test_select_patches__of_12_megapixels_all_different_takes_little_memory() -> None:
    draw = np.random.default_rng(2)
    image = 255 - (draw.random((3000, 4000, 1), np.float32) < 0.0005).astype(np.uint8).repeat(3, axis=2)
    tracemalloc.start()
    indices = chosen_indices(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 24 * MIB
    assert np.array_equal(indices, selected_indices(patch_entropy(image)))


def test_select_patches__default_is_the_literal_permutation(picture: np.ndarray) -> None:
    patches = selected_patches(picture)
    mosaic = select_patches(picture)
    for cell, source in enumerate(PERMUTATION):
        top, left = cell // 7 * 32, cell % 7 * 32
        assert np.array_equal(mosaic[top : top + 32, left : left + 32], patches[source]), cell
    assert not np.array_equal(mosaic, select_patches(picture, permutation=IDENTITY))


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
