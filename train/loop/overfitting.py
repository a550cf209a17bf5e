"""Whether a model can learn one batch by heart: the first thing to try when a run does not learn."""

from __future__ import annotations

import torch

from train.config import TrainConfig
from train.loop.feed import Feed
from train.loop.optimiser import HALF, Optimiser
from train.loop.ranks import Ranks
from train.loop.stage_loop import memory_advice
from train.model.detector import DgsNet
from train.recipes import Stage


def overfit_one_batch(
    stage: Stage, model: DgsNet, feed: Feed, config: TrainConfig, ranks: Ranks, steps: int
) -> list[float]:
    """Returns L_img before each of ``steps`` steps on one and the same window, without dropout.

    L_img alone: the text loss cannot fall where captions say nothing of the label. The learning rate is the
    run's own and does not warm up or decay. The model is trained by this.

    Raises:
        UsageError: the device's memory is too small.
        DataError: a picture cannot be read.
    """
    trained = stage.prepare(model)
    model.eval()
    optimiser = Optimiser(trained, config.optim, ranks)
    losses = []
    with model.arithmetic(HALF[config.optim.amp], compiled=config.optim.compile), memory_advice(config):
        for _ in range(steps):
            optimiser.clear()
            figures = torch.zeros(1, device=ranks.device)
            for batch in feed.first_window(stage, lambda: optimiser.scale):
                outcome = stage.losses(model, batch)
                (outcome.loss * batch.scale).backward()
                figures += outcome.parts["loss_image"].detach()
            optimiser.step(1.0, figures)
            losses.append(float(figures))
    return losses
