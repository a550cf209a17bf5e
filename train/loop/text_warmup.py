"""Warm-up of the text head: some steps of its own on the cached text features, before stage 2.

Without it the head is random at step 0 of stage 2, and so is the direction that surgery removes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from runtime.console import Progress
from train.config import TrainConfig
from train.data.order import epoch_windows, positive_weight
from train.loop.optimiser import Optimiser
from train.loop.ranks import Ranks
from train.model.text_features import TextFeatures


def warm_up(
    head: nn.Module, text_features: TextFeatures | Tensor, labels: Tensor, config: TrainConfig
) -> None:
    """Trains a text head alone, by the run's optimiser, for ``surgery.text_warmup_steps`` steps.

    Args:
        head: h_txt, on any device.
        text_features: f_x of N captions, by index, float32 on the CPU.
        labels: y, float32 ``[N]`` on the CPU.
        config: steps, batch, seed, balance and optimiser.
    """
    steps, data = config.surgery.text_warmup_steps, config.data
    if not steps:
        return
    parameters = list(head.parameters())
    device = parameters[0].device
    weight = None
    if data.balance == "pos-weight":
        weight = torch.tensor(positive_weight(labels.numpy()), device=device)
    # The head is FP32 and sees no loss scale.
    optimiser = Optimiser(parameters, dataclasses.replace(config.optim, amp="off"), Ranks())
    done = 0
    with Progress("text head, warm-up", steps) as progress:
        for epoch in range(steps):
            # Draws of its own: the stages count their epochs from 0.
            windows = epoch_windows(
                labels.numpy(), batch=data.batch, seed=config.seed, epoch=10**6 + epoch, balance=data.balance
            )
            for window in windows[: steps - done]:
                logit = head(text_features[torch.from_numpy(window)].to(device)).squeeze(1)
                target = labels[window].to(device)
                optimiser.clear()
                binary_cross_entropy_with_logits(logit, target, pos_weight=weight).backward()
                optimiser.step(1.0, logit.new_zeros(0))
                done += 1
                progress.advance()
            if done == steps:
                return
