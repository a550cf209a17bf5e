"""Degradations: what they lose, what they keep, and the names they go by."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runtime.errors import ImageError, UsageError
from train.data.degrade import (
    LONGEST_SIDES,
    ROBUSTNESS,
    Degradation,
    blur,
    degradation_from_name,
    jpeg,
    resize,
    webp,
)


@pytest.fixture
def photo() -> np.ndarray:
    """A gradient with noise on it, uint8 [80, 112, 3]."""
    y, x = np.mgrid[:80, :112]
    smooth = np.stack([y * 2, x * 2, y + x], axis=-1)
    noise = np.random.default_rng(0).integers(-25, 26, (80, 112, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def loss(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("name", ROBUSTNESS)
def test_degradation__gives_pixels_that_differ_and_repeat(photo: np.ndarray, name: str) -> None:
    degradation = degradation_from_name(name)
    before = photo.copy()
    changed = degradation(photo)
    assert (changed.dtype, changed.ndim, changed.shape[2]) == (np.uint8, 3, 3)
    assert changed.shape == ((40, 56, 3) if name == "resize:0.5" else photo.shape)
    assert np.array_equal(photo, before)
    assert np.array_equal(degradation(photo), changed)
    assert changed.shape != photo.shape or loss(changed, photo) > 1
    assert abs(changed.mean() - photo.mean()) < 2


@pytest.mark.parametrize("codec", [jpeg, webp])
def test_codec__loses_more_at_lower_quality(photo: np.ndarray, codec: object) -> None:
    losses = [loss(codec(photo, quality), photo) for quality in (95, 75, 50, 5)]
    assert losses == sorted(losses)
    assert losses[0] < 0.8 * losses[-1]


@pytest.mark.parametrize("quality", [10, 75, 95, 100])
def test_jpeg__halves_the_chroma_at_every_quality(photo: np.ndarray, quality: int) -> None:
    for subsampling, is_equal in ((2, True), (0, False)):
        stream = io.BytesIO()
        Image.fromarray(photo).save(stream, "JPEG", quality=quality, subsampling=subsampling)
        assert np.array_equal(jpeg(photo, quality), np.array(Image.open(stream))) == is_equal


def test_blur__spreads_a_point_by_its_deviation() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    for sigma in (1.0, 2.0):
        spread = blur(point, sigma)[:, :, 0].astype(float)
        distance = np.arange(41) - 20
        found = np.sqrt((spread.sum(0) * distance**2).sum() / spread.sum())
        assert found == pytest.approx(sigma, rel=0.15)
    assert np.array_equal(blur(point, 0), point)


def test_resize__smooths_before_it_shrinks() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, 0.5)
    assert small.shape == (64, 64, 3)
    assert np.abs(small[:, 2:-2].astype(int) - 128).max() <= 20  # not black, not white: grey


@pytest.mark.parametrize(
    ("shape", "scale", "expected"),
    [
        ((100, 60), 0.5, (53, 32)),  # 30 would be too few: the whole picture shrinks less
        ((100, 60), 0.6, (60, 36)),
        ((32, 400), 0.5, (32, 400)),
        ((20, 400), 0.5, (20, 400)),  # too small already: nobody makes it larger
        ((64, 65), 0.5, (32, 32)),
        ((20, 30), 2.0, (40, 60)),
    ],
)
def test_resize__stops_where_patches_end(
    shape: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert resize(np.zeros((*shape, 3), np.uint8), scale).shape == (*expected, 3)


@pytest.mark.parametrize("name", ["jpeg:50", "webp:50"])
def test_codec__refuses_what_the_format_cannot_hold(name: str) -> None:
    degradation = degradation_from_name(name)
    longest = LONGEST_SIDES[degradation.kind]
    assert degradation(np.zeros((1, longest, 3), np.uint8)).shape == (1, longest, 3)
    with pytest.raises(ImageError, match=f"{longest + 101} x 1 pixels cannot be written as") as caught:
        degradation(np.zeros((1, longest + 101, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_degradation_from_name__reads_what_name_writes() -> None:
    assert degradation_from_name("jpeg:75") == Degradation("jpeg", 75)
    assert [degradation_from_name(name).name for name in ROBUSTNESS] == list(ROBUSTNESS)
    assert degradation_from_name("blur:1").name == "blur:1.0"
    assert degradation_from_name("webp:080.0") == degradation_from_name("webp:80")


@given(st.sampled_from(["resize", "blur"]), st.floats(0.05, 4))
def test_degradation_from_name__keeps_every_digit(kind: str, strength: float) -> None:
    assert degradation_from_name(Degradation(kind, strength).name) == Degradation(kind, strength)


@pytest.mark.parametrize(
    "name",
    [
        "", "jpeg", "jpeg:", "jpeg:x", "JPEG:75", "jpg:75", "jpeg:0", "jpeg:101", "jpeg:75.5", "jpeg:nan",
        "jpeg:inf", "webp:-1", "resize:0", "resize:0.04", "resize:5", "blur:-1", "blur:nan", "noise:1",
    ],
)  # fmt: skip
def test_degradation_from_name__refuses(name: str) -> None:
    with pytest.raises(UsageError, match=f"degradation: found '{name}', expected") as caught:
        degradation_from_name(name)
    assert "\n" not in str(caught.value)
