"""The random band-pass patch embedding, on the demo's own photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.errors import UsageError
from runtime.spec import IMAGE_MEAN, IMAGE_STD
from train.demo.photographs import load_photographs
from train.model.backbone import load_clip
from train.model.patch_filters import BAND_EDGES, TOKEN_DEVIATION, band_pass_filters


def test_patch_filters__each_passes_its_band_and_answers_evenly_to_photographs() -> None:
    bands = len(BAND_EDGES) - 1
    filters = band_pass_filters(32, 32, seed=5)
    assert filters.shape == (32, 3, 32, 32)
    assert torch.equal(filters, band_pass_filters(32, 32, seed=5))
    assert not torch.equal(filters, band_pass_filters(32, 32, seed=6))
    for row, kernel in enumerate(filters):
        centre = kernel.mean(dim=(1, 2)).norm() * 32 / kernel.norm()
        assert centre > 0.99 if row % bands == 0 else centre < 1e-5, row

    mean, std = np.array(IMAGE_MEAN), np.array(IMAGE_STD)
    patches = []
    for photo in load_photographs():
        height, width = (side // 32 * 32 for side in photo.pixels.shape[:2])
        grid = (photo.pixels[:height, :width] / 255 - mean) / std
        patches.append(
            grid.reshape(height // 32, 32, width // 32, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        )
    pixels = torch.from_numpy(np.concatenate(patches)).permute(0, 3, 1, 2).float()
    answers = pixels.flatten(1) @ filters.flatten(1).T
    deviation = torch.stack([answers[:, band::bands].std() for band in range(bands)])
    assert deviation.max() < 2 * TOKEN_DEVIATION, deviation
    assert deviation.min() > TOKEN_DEVIATION / 4, deviation


def test_patch_filters__refuse_patches_too_small_for_the_bands() -> None:
    with pytest.raises(UsageError, match="side 8"):
        band_pass_filters(4, 8, seed=0)


def test_load_clip__random_bandpass_changes_the_patch_embedding_alone() -> None:
    plain, _ = load_clip("dgsnet-tiny-p32", "random", seed=3)
    banded, info = load_clip("dgsnet-tiny-p32", "random-bandpass", seed=3)
    assert info.pretrained == "random-bandpass"
    assert not info.is_on_hub
    changed = {
        name
        for name, tensor in plain.visual.state_dict().items()
        if not torch.equal(tensor, banded.visual.state_dict()[name])
    }
    assert changed == {"conv1.weight"}
    assert torch.equal(banded.visual.conv1.weight, band_pass_filters(256, 32, seed=3))
