"""Which pictures of a data set can be scored, and their logits by the PyTorch model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.console import Progress
from train.checkpoint import Checkpoint
from train.config import DataConfig
from train.data.audit import Audit, audit_samples
from train.data.layout import Sample, find_samples
from train.data.mosaics import MosaicSet
from train.model.detector import DgsNet


def readable_samples(
    root: Path, config: DataConfig, *, title: str, max_corrupt: float | None = None
) -> Audit:
    """Finds the pictures of a test set and decodes each once; those that cannot be read are set aside.

    Args:
        root: of a test set, such as ``<generator>/{0_real,1_fake}/``.
        config: of the run; its ``audit`` plays no part, since only decoding finds a truncated picture.
        title: names the set in messages.
        max_corrupt: share of unreadable pictures that is allowed; None takes the run's ``data.max_corrupt``.

    Raises:
        DataError: the data set is laid out otherwise, more pictures than allowed cannot be read, or no
            readable picture of one label is left.
    """
    allowed = config.max_corrupt if max_corrupt is None else max_corrupt
    config = dataclasses.replace(config, audit="full", max_corrupt=allowed)
    return audit_samples(find_samples(root), config, title=title)


def score_samples(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    device: str,
    *,
    title: str,
    batch: int | None = None,
    degrade: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> NDArray[np.float32]:
    """Returns the raw logit that a run gives each sample, float32 ``[N]``.

    Args:
        checkpoint: its model is moved to ``device``.
        samples: what to score.
        device: "cpu" or a CUDA device.
        title: shown while the pictures are read.
        batch: pictures the model sees at once; None takes the run's own ``data.batch``.
        degrade: changes every picture after decoding, before patches are chosen: uint8 ``[H, W, 3]`` to uint8
            ``[h, w, 3]``.

    Raises:
        DataError: a picture cannot be read.
    """
    config = checkpoint.config
    data = config.data if batch is None else dataclasses.replace(config.data, batch=batch)
    mosaics = MosaicSet(samples, data, seed=config.seed, title=title, degrade=degrade)
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
