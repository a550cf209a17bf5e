"""Entropies in three ways: one FFT a patch, matrix products in float64, the same in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from runtime.patches import entropy, selection, sifting
from runtime.patches.entropy import entropy_at, patch_entropy
from runtime.patches.pixels import pixels_of
from runtime.patches.sifting import entropy_bounds, extreme_entropies
from runtime.patches.spectrum import entropy_from_products


def slow_entropy(image: np.ndarray) -> np.ndarray:
    """The definition, one patch at a time, with the whole spectrum; not rounded."""
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    entropies = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = image[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32].astype(np.float64)
            grey = 0.299 * patch[..., 0] + 0.587 * patch[..., 1] + 0.114 * patch[..., 2]
            power = np.abs(np.fft.fft2(grey)) ** 2
            share = power / (power.sum() + 1e-12)
            entropies[row, column] = -(share * np.log2(share + 1e-12)).sum()
    return entropies


def noise(low: int, high: int, height: int = 320, width: int = 480) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, (height, width, 3), dtype=np.uint8)


def dots(density: float, low: int, high: int) -> np.ndarray:
    is_dot = np.random.default_rng(4).random((320, 480, 1)) < density
    return np.where(is_dot, high, low).astype(np.uint8).repeat(3, axis=2)


def ramps() -> np.ndarray:
    rows, columns = np.mgrid[0:320, 0:480]
    return np.stack([rows % 256, columns // 2 % 256, (rows + columns) // 4 % 256], axis=2).astype(np.uint8)


def waves() -> np.ndarray:
    rows, columns = np.mgrid[0:320, 0:480]
    wave = 127 + 120 * np.sin(2 * np.pi * (rows * (1 + rows // 32) + columns * (columns // 32)) / 32)
    return wave[..., None].astype(np.uint8).repeat(3, axis=2)


PICTURES: dict[str, Callable[[], np.ndarray]] = {
    "noise": lambda: noise(0, 256),
    "grey noise": lambda: noise(0, 256)[..., :1].repeat(3, axis=2),
    "faint noise on grey": lambda: noise(128, 130),
    "faint noise on white": lambda: noise(254, 256),
    "black with ones": lambda: dots(0.001, 0, 1),
    "black with white dots": lambda: dots(0.001, 0, 255),
    "white with black dots": lambda: dots(0.001, 255, 0),
    "two levels": lambda: dots(0.5, 0, 255),
    "ramps": ramps,
    "waves": waves,
    "black": lambda: np.zeros((320, 480, 3), np.uint8),
    "white": lambda: np.full((320, 480, 3), 255, np.uint8),
    "one column of patches": lambda: noise(0, 256, 4200, 40),
    "more columns than a band": lambda: noise(0, 256, 70, 8200),
}


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_entropy_from_products__errs_far_less_than_the_margins(make: Callable[[], np.ndarray]) -> None:
    image = make()
    expected = slow_entropy(image)
    error_fp64 = np.abs(entropy_from_products(image, np.float64) - expected).max()
    error_fp32 = np.abs(entropy_from_products(image, np.float32) - expected).max()
    assert error_fp64 <= entropy._ROUNDING_MARGIN / 10
    # Two patches may err in opposite directions; the rest is for other processors and libraries.
    assert error_fp32 <= selection._ORDER_MARGIN / 5


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_entropy_bounds__hold(make: Callable[[], np.ndarray]) -> None:
    image = make()
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    whole = image[: rows * 32, : columns * 32]
    grey = (whole * [0.299, 0.587, 0.114]).sum(axis=2).reshape(rows, 32, columns, 32)
    share = grey.var(axis=(1, 3)) / np.maximum(np.square(grey).mean(axis=(1, 3)), 1e-12)
    expected = slow_entropy(image)
    # As far as the share may err.
    for error in (-1e-5, 0.0, 1e-5):
        least, most = entropy_bounds(share + error)
        assert (least <= expected + 1e-8).all()
        assert (most >= expected - 1e-8).all()


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_varying_share__errs_less_than_its_margin(make: Callable[[], np.ndarray]) -> None:
    image = make()
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    grey = (image[: rows * 32, : columns * 32] * [0.299, 0.587, 0.114]).sum(axis=2)
    patches_of = grey.reshape(rows, 32, columns, 32)
    expected = patches_of.var(axis=(1, 3)) / np.maximum(np.square(patches_of).mean(axis=(1, 3)), 1e-12)
    shares = sifting._GreyPatches(pixels_of(image)).shares()
    assert np.abs(shares - expected.reshape(-1)).max() <= sifting._SHARE_MARGIN / 5


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_extreme_entropies__leaves_out_only_what_cannot_be_chosen(
    make: Callable[[], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make()
    exact = np.sort(slow_entropy(image), axis=None)
    monkeypatch.setattr(sifting, "_FEW", 0)
    monkeypatch.setattr(sifting, "_WORTH_A_BOUND", 1.0)
    sifted = extreme_entropies(image, 24, 25, 1e-5)
    left = slow_entropy(image)[np.isnan(sifted)]
    assert ((left > exact[23]) & (left < exact[-25])).all()


# Amplitudes of waves, deviations of faint and of strong noise. A wave has its power in two frequencies and
# noise in all of them, so that the order of the bounds is not that of the entropies.
@pytest.mark.parametrize(("amplitude", "faint", "strong"), [(63, 35, 70), (125, 0, 65)], ids=["low", "high"])
def test_extreme_entropies__finds_what_the_bounds_do_not_promise(
    amplitude: int, faint: int, strong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(6)
    turns = 2 * np.pi / 32 * np.arange(32)
    made = []
    for number in range(400):
        wave = amplitude * np.cos(np.add.outer(turns * draw.integers(1, 9), turns * draw.integers(1, 9)))
        noisy = draw.normal(0, 1, (32, 32))
        made.append(120 + [wave, faint * noisy, strong * noisy][number % 3])
    grid = np.array(made).reshape(20, 20, 32, 32).transpose(0, 2, 1, 3).reshape(640, 640)
    image = np.clip(grid, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    monkeypatch.setattr(sifting, "_WORTH_A_BOUND", 1.0)
    sifted = extreme_entropies(image, 24, 25, 1e-5).reshape(-1)
    order = np.argsort(slow_entropy(image), axis=None, kind="stable")
    assert not np.isnan(sifted[np.append(order[:24], order[-25:])]).any()


def test_extreme_entropies__transforms_patches_that_are_alike_without_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(sifting._GreyPatches, "shares", lambda patches: asked.append(patches))
    assert not np.isnan(extreme_entropies(noise(0, 256, 640, 960), 24, 25, 1e-5)).any()
    assert not asked


def test_extreme_entropies__transforms_few_patches_of_a_picture_with_calm_and_busy_parts() -> None:
    rows, columns = np.mgrid[0:2048, 0:2048]
    strength = np.random.default_rng(0).normal(0, 1, rows.shape) * (20 * rows / 2048)
    calm = 127 + 60 * np.sin(rows / 97) * np.cos(columns / 61)
    image = np.clip(calm + strength, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    sifted = extreme_entropies(image, 24, 25, 1e-5)
    exact = slow_entropy(image)
    is_left = np.isnan(sifted)
    assert is_left.mean() > 0.85
    assert np.abs(sifted - exact)[~is_left].max() <= selection._ORDER_MARGIN / 5
    ascending = np.sort(exact, axis=None)
    assert exact[is_left].min() > ascending[23]
    assert exact[is_left].max() < ascending[-25]


@pytest.mark.parametrize("shape", [(32, 32), (32, 2208), (2208, 32), (63, 97), (333, 1000)], ids=str)
def test_patch_entropy__equals_the_definition_at_any_shape(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.abs(patch_entropy(image) - slow_entropy(image)).max() <= 1e-9


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_patch_entropy__of_flat_patches_is_plain_zero(value: int) -> None:
    flat = patch_entropy(np.full((64, 96, 3), value, dtype=np.uint8))
    assert np.array_equal(flat, np.zeros((2, 3)))
    assert not np.signbit(flat).any()


def test_patch_entropy__depends_on_grey_weights() -> None:
    noisy = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    images = [np.zeros((32, 32, 3), dtype=np.uint8) for _ in range(2)]
    images[0][..., 0], images[0][..., 1] = noisy, 200
    images[1][..., 1], images[1][..., 0] = noisy, 200
    assert abs(patch_entropy(images[0]) - patch_entropy(images[1])).item() > 0.1


def test_patch_entropy__of_equal_patches_is_equal_even_where_rounding_hangs_on_the_last_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = noise(0, 256, 3200, 3200)
    scaled = entropy_from_products(image, np.float64) * 1e9
    from_middle = np.abs(scaled - np.floor(scaled) - 0.5)
    row, column = np.unravel_index(from_middle.argmin(), from_middle.shape)
    assert from_middle.min() < 1e-3
    patch = image[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]

    def with_other_last_bits(image: np.ndarray, dtype: type) -> np.ndarray:
        exact = entropy_from_products(image, dtype)
        shift = 1.1e-9 * from_middle.min() + 1e-14
        return exact + np.resize([-shift, shift], exact.shape)

    monkeypatch.setattr(entropy, "entropy_from_products", with_other_last_bits)
    assert np.unique(patch_entropy(np.tile(patch, (5, 9, 1)))).size == 1


def test_entropy_at__equals_the_whole_map(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(0, 256, 640, 960)
    image[:, 320:640] = image[:, :320]
    monkeypatch.setattr(entropy, "_REMEMBERED", 100)
    indices = np.random.default_rng(8).integers(0, 600, 2000)
    assert np.array_equal(entropy_at(image, indices.tolist()), patch_entropy(image).reshape(-1)[indices])
    for count in (0, 1, 12, 13):
        few = indices[:count]
        assert np.array_equal(entropy_at(image, few.tolist()), patch_entropy(image).reshape(-1)[few])


def test_entropy_at__measures_equal_patches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    really = entropy._measured
    monkeypatch.setattr(entropy, "_measured", lambda pixels: measured.append(len(pixels)) or really(pixels))
    image = np.tile(noise(0, 256, 64, 64), (10, 10, 1))
    assert np.unique(entropy_at(image, range(400))).size == 4
    assert measured == [4]
