"""Mosaics of training and scoring: draws, order, agreement with the runtime."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.decode import decode_image
from runtime.errors import DataError
from runtime.patches.selection import select_patches, selected_patches
from train.config import TrainConfig
from train.config.sections import DataConfig
from train.data import mosaics
from train.data.augment import augment_image, augment_patches
from train.data.degrade import jpeg
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


def settings(**values: object) -> DataConfig:
    return TrainConfig().with_values((f"data.{key}", value) for key, value in values.items()).data


@pytest.mark.parametrize("changes", [{}, {"jpeg": 0.5, "blur": 0.5, "resize": 0.5}])
def test_read__gives_the_same_bits_whatever_the_workers(data_set: Path, changes: dict[str, float]) -> None:
    samples = find_samples(data_set, "train")
    lists = [[3, 1, 2], [], [23], [0, 0, 5, 6, 7]]
    seen = []
    for workers, cache in ((0, 0), (1, 0), (3, 0), (2, 1)):
        config = settings(workers=workers, cache_gib=cache, **changes)
        data = MosaicSet(samples, config, seed=3, title="test")
        seen.append([item for epoch in (1, -1, 0) for item in data.read(lists, epoch)])
    for others in seen[1:]:
        for (a, i), (b, j) in zip(seen[0], others, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(i, j)
    assert [indices.tolist() for _, indices in seen[0]] == lists * 3
    assert seen[0][1][0].shape == (0, 224, 224, 3)
    assert all(images.dtype == torch.uint8 and i.dtype == torch.int64 for images, i in seen[0])


@pytest.mark.parametrize("cache", [0, 1])
@pytest.mark.parametrize("workers", [0, 1])
def test_read__leaves_torchs_random_state_alone(data_set: Path, workers: int, cache: int) -> None:
    samples = find_samples(data_set, "val")
    data = MosaicSet(samples, settings(workers=workers, cache_gib=cache), seed=3, title="test")
    before = torch.get_rng_state()
    reading = data.read([[0], [1]], 0)
    next(reading)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(reading)) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_read__changes_pictures_before_patches_are_selected(data_set: Path) -> None:
    samples = find_samples(data_set, "train")
    config = settings(jpeg=0.5, resize=0.5, workers=0)
    data = MosaicSet(samples, config, seed=3, title="test")
    plain = MosaicSet(samples, settings(workers=0), seed=3, title="test")
    images, _ = next(data.read([range(24)], 2))
    changed = 0
    for index, sample in enumerate(samples):
        given = decode_image(sample.path)
        image = augment_image(given, config, seed=3, epoch=2, key=sample.key)
        mosaic = augment_patches(selected_patches(image), config, seed=3, epoch=2, key=sample.key)
        assert np.array_equal(images[index].numpy(), mosaic)
        changed += image is not given
        if image is given:  # the draws of the mosaic are those of a run without augmentation
            assert torch.equal(images[index], plain[index, 2][0])
    assert 10 <= changed <= 23  # 18 of 24 expected


def test_read__holds_patches_in_memory_for_inference_only(
    data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    told: list[str] = []
    monkeypatch.setattr(
        mosaics, "decode_image", lambda source: decoded.append(source) or decode_image(source)
    )
    monkeypatch.setattr(mosaics.logger, "info", told.append)
    data = MosaicSet(find_samples(data_set, "val"), settings(jpeg=1, workers=0), seed=3, title="test")
    assert not decoded
    for _ in range(2):
        list(data.read([[0, 1]], -1))
    assert len(decoded) == 12
    assert not told
    for epoch in (0, 1):
        list(data.read([[0, 1]], epoch))
    assert len(decoded) == 16
    assert len(told) == 1
    assert "not held in memory" in told[0]


@pytest.mark.parametrize("cache", [0, 1])
def test_mosaics__are_made_of_degraded_pictures(data_set: Path, cache: int) -> None:
    samples = find_samples(data_set, "val")
    config = settings(workers=0, cache_gib=cache)
    data = MosaicSet(samples, config, seed=0, title="test", degrade=lambda image: jpeg(image, 50))
    images, _ = next(data.read([[2, 7]], -1))
    for image, index in zip(images, (2, 7), strict=True):
        assert np.array_equal(image.numpy(), select_patches(jpeg(decode_image(samples[index].path), 50)))


def test_mosaics__of_a_shard_are_those_of_its_files(data_set: Path, tmp_path: Path) -> None:
    folders = find_samples(data_set, "val")
    for label in (0, 1):
        (tmp_path / f"{label}.cls").write_text(str(label))
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for number, sample in enumerate(folders):
            archive.add(sample.path, f"{number}.png")
            archive.add(tmp_path / f"{sample.label}.cls", f"{number}.cls")
    shards = find_samples(tmp_path)
    order = [[7, 0, 3], [11]]
    for workers in (0, 2):
        config = settings(workers=workers, cache_gib=0)
        inside, beside = (
            MosaicSet(s, config, seed=0, title="test").read(order, -1) for s in (shards, folders)
        )
        for (a, i), (b, j) in zip(inside, beside, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(i, j)


def test_batches__are_balanced_when_asked(data_set: Path) -> None:
    samples = find_samples(data_set, "train")
    samples = [s for s in samples if s.label] + [s for s in samples if not s.label][:5]
    data = MosaicSet(samples, settings(balance="sampler", batch=8), seed=3, title="test")
    drawn = [data.labels[indices] for _, indices in data.batches(0)]
    assert [len(labels) for labels in drawn] == [8, 8, 8]
    assert all(labels.mean() == 0.5 for labels in drawn)
