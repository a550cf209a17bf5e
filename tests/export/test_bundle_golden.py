"""Golden mosaics: varied, the same everywhere, written as bytes that depend on nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from export.bundle.golden import synthetic_mosaics, write_golden
from runtime.bundle.golden import read_golden
from runtime.errors import SpecError


def test_synthetic_mosaics__are_what_the_graph_takes_and_not_alike() -> None:
    images = synthetic_mosaics()
    assert (images.shape, images.dtype) == ((16, 224, 224, 3), np.uint8)
    assert images[0].max() == 0
    assert images[1].min() == 255
    assert len({image.tobytes() for image in images}) == 16
    # From pictures without any detail to pure noise: mean difference of neighbouring pixels.
    detail = np.abs(np.diff(images.astype(np.int16), axis=2)).mean(axis=(1, 2, 3))
    assert detail[2:].min() < 3
    assert detail.max() > 60
    assert np.unique(np.round(images.mean(axis=(1, 2, 3)))).size >= 12


def test_synthetic_mosaics__follow_the_seed_alone() -> None:
    np.testing.assert_array_equal(synthetic_mosaics(8, seed=3), synthetic_mosaics(16, seed=3)[:8])
    assert not np.array_equal(synthetic_mosaics(4, seed=3)[2:], synthetic_mosaics(4, seed=4)[2:])
    assert synthetic_mosaics(1).shape == (1, 224, 224, 3)


def test_write_golden__the_runtime_reads_it_back(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    images = synthetic_mosaics(4)
    logit = random.standard_normal(4).astype(np.float32)
    embedding = random.standard_normal((4, 8)).astype(np.float32)
    write_golden(tmp_path / "golden.npz", images, logit, embedding)
    golden = read_golden(tmp_path / "golden.npz", 8)
    np.testing.assert_array_equal(golden.images, images)
    np.testing.assert_array_equal(golden.logit, logit)
    np.testing.assert_array_equal(golden.embedding, embedding)
    with np.load(tmp_path / "golden.npz", allow_pickle=False) as plain:
        assert sorted(plain.files) == ["embedding", "images", "logit"]


def test_write_golden__same_arrays_same_bytes(tmp_path: Path) -> None:
    # The hash pins the container: a time stamp, a compressor or a header that differs would change it.
    images = np.arange(224 * 224 * 3, dtype=np.int64).astype(np.uint8).reshape(1, 224, 224, 3)
    for name, order in (("a.npz", "C"), ("b.npz", "F")):
        ordered = np.asarray(images, order=order)
        write_golden(tmp_path / name, ordered, np.zeros(1, np.float32), np.ones((1, 2), np.float32))
    os.utime(tmp_path / "a.npz", (0, 0))
    content = (tmp_path / "a.npz").read_bytes()
    assert content == (tmp_path / "b.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "3c8fb7b3608f4867"


@pytest.mark.parametrize(
    ("images", "logit", "embedding", "message"),
    [
        (np.zeros((2, 224, 224, 3), np.float32), np.zeros(2), np.zeros((2, 8)), "images: found float32"),
        (np.zeros((2, 3, 224, 224), np.uint8), np.zeros(2), np.zeros((2, 8)), "images: found uint8"),
        (np.zeros((0, 224, 224, 3), np.uint8), np.zeros(0), np.zeros((0, 8)), "at least one row"),
        (np.zeros((2, 224, 224, 3), np.uint8), np.zeros(3), np.zeros((2, 8)), r"logit: found float32 \[3\]"),
        (np.zeros((2, 224, 224, 3), np.uint8), np.zeros(2), np.zeros(2), "embedding: found"),
        (np.zeros((2, 224, 224, 3), np.uint8), np.array([0, np.nan]), np.zeros((2, 8)), "NaN or infinity"),
    ],
)
def test_write_golden__refuses_what_nobody_could_read(
    images: np.ndarray, logit: np.ndarray, embedding: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        write_golden(tmp_path / "golden.npz", images, logit.astype(np.float32), embedding.astype(np.float32))
    assert list(tmp_path.iterdir()) == []
