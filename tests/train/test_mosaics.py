"""Mosaics of training and scoring: draws, order, agreement with the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.errors import DataError
from train.config import TrainConfig
from train.data.layout import Sample, find_samples
from train.data.mosaics import MosaicSet


def test_mosaics__draws_do_not_depend_on_workers_or_cache(data_set: Path) -> None:
    samples = find_samples(data_set, "train")
    base = TrainConfig().with_value("data.batch", 5)
    in_memory = MosaicSet(samples, base.data, seed=3, title="test")
    in_workers = MosaicSet(samples, base.with_value("data.cache_gib", 0).data, seed=3, title="test")
    for epoch in (-1, 0, 1):
        for (a, i), (b, j) in zip(in_memory.batches(epoch), in_workers.batches(epoch), strict=True):
            assert torch.equal(i, j)
            assert torch.equal(a, b)
    first, second = (next(iter(in_memory.batches(epoch)))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_mosaics__inference_equals_the_runtime(data_set: Path) -> None:
    from runtime.decode import decode_image
    from runtime.patches import select_patches

    samples = find_samples(data_set, "val")
    images, _ = next(iter(MosaicSet(samples, TrainConfig().data, seed=0, title="test").batches(-1)))
    assert np.array_equal(images[2].numpy(), select_patches(decode_image(samples[2].path)))


@pytest.mark.parametrize("seed", [3, 4])
def test_batches__are_a_new_order_every_epoch(data_set: Path, seed: int) -> None:
    samples = find_samples(data_set, "train")
    config = TrainConfig().with_value("data.batch", 7).data
    data = MosaicSet(samples, config, seed=seed, title="test")
    orders = [torch.cat([indices for _, indices in data.batches(epoch)]).tolist() for epoch in (-1, 0, 1)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert orders[0] == sorted(orders[0])
    assert orders[1] != orders[0]
    assert orders[2] not in orders[:2]
    assert data.steps() == 4
    assert [len(indices) for _, indices in data.batches(0)] == [7, 7, 7, 3]


def test_mosaics__are_mirrored_half_of_the_time(data_set: Path) -> None:
    samples = find_samples(data_set, "train")
    by_flip = [
        MosaicSet(samples, TrainConfig().with_value("data.flip", flip).data, seed=3, title="test")
        for flip in (True, False)
    ]
    mirrored = 0
    for index in range(len(samples)):
        maybe, plain = (data[index, 0][0] for data in by_flip)
        is_mirrored = torch.equal(maybe, plain.flip(1))
        assert is_mirrored != torch.equal(maybe, plain)
        mirrored += is_mirrored
        assert torch.equal(*(data[index, -1][0] for data in by_flip))  # never at inference
    assert 6 <= mirrored <= 18  # of 24


@pytest.mark.parametrize("workers", [0, 2])
def test_batches__name_a_bad_picture_in_one_line(data_set: Path, tmp_path: Path, workers: int) -> None:
    good = find_samples(data_set, "val")
    (tmp_path / "bad.png").write_bytes(good[0].path.read_bytes()[:500])
    bad = Sample("val/blur/0_real/bad.png", tmp_path / "bad.png", 0, "blur")
    config = TrainConfig().with_values([("data.cache_gib", 0), ("data.workers", workers), ("data.batch", 3)])
    data = MosaicSet([*good, bad], config.data, seed=0, title="test")
    with pytest.raises(DataError, match=r"^val/blur/0_real/bad\.png: ") as caught:
        list(data.batches(-1))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
