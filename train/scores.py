"""Logits of a data set by the PyTorch model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.console import Progress
from train.checkpoint import Checkpoint
from train.data.layout import Sample
from train.data.mosaics import MosaicSet
from train.model import DgsNet


def score_samples(
    checkpoint: Checkpoint, samples: Sequence[Sample], device: str, *, title: str
) -> NDArray[np.float32]:
    """Returns the raw logit that a run gives each sample, float32 ``[N]``.

    Args:
        checkpoint: its model is moved to ``device``.
        samples: what to score.
        device: "cpu" or a CUDA device.
        title: shown while the pictures are read.
    """
    config = checkpoint.config
    mosaics = MosaicSet(samples, config.data, seed=config.seed, title=title)
    return score_mosaics(checkpoint.model.to(device), mosaics, device)


@torch.no_grad()
def score_mosaics(model: DgsNet, data: MosaicSet, device: str) -> NDArray[np.float32]:
    """Returns the raw logit of every sample, float32 ``[N]``, with the permutation of inference.

    Args:
        model: in eval mode on ``device``.
        data: the samples, in their own order.
        device: "cpu" or a CUDA device.
    """
    logits = np.empty(len(data), dtype=np.float32)
    with Progress("scoring", len(data)) as progress:
        for images, indices in data.batches(epoch=-1):
            logits[indices.numpy()] = model(images.to(device))[0].cpu().numpy()
            progress.advance(len(indices))
    return logits
