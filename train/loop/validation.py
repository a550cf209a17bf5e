"""Logits of the val split, shared among processes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from train.config import TrainConfig
from train.data.mosaics import MosaicSet
from train.loop.ranks import Ranks
from train.model.detector import DgsNet


@torch.no_grad()
def validation_logits(
    model: DgsNet, data: MosaicSet, config: TrainConfig, ranks: Ranks
) -> NDArray[np.float32]:
    """Returns the raw logit of every sample, float32 ``[N]``, with the permutation of inference, in float32.

    Leaves the model in the mode (train or eval) that it was in.

    Args:
        model: on the processes' devices.
        data: the samples.
        config: as many samples go through the model at once as in a micro-batch of training.
        ranks: each process scores its share and receives the whole.
    """
    batch = -(-config.data.batch // (ranks.count * config.optim.accumulate))
    was_training = model.training
    model.eval()
    mine = np.arange(len(data))[ranks.rank :: ranks.count]
    batches = [mine[start : start + batch].tolist() for start in range(0, len(mine), batch)]
    logits = torch.zeros(len(data), device=ranks.device)
    with model.arithmetic(None):
        for images, indices in data.read(batches, epoch=-1):
            logits[indices.to(ranks.device)] = model(images.to(ranks.device))[0]
    ranks.add_up(logits)
    model.train(was_training)
    return logits.cpu().numpy()
