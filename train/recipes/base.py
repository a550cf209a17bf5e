"""What a recipe is: which heads the model has, and the stages that train them one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from train.config import TrainConfig
from train.model.detector import DgsNet


@dataclass(frozen=True)
class Batch:
    """One micro-batch of b samples, a share of the B samples of an optimiser step.

    Attributes:
        images: mosaics, uint8 ``[b, 224, 224, 3]``, on the model's device.
        target: y, float32 ``[b]``, 0 real and 1 generated.
        size: B, the effective batch that divides every sum.
        positive_weight: factor of the loss of generated pictures; 1 without class weights.
        scale: S, what multiplies the loss before the backward pass; a float32 scalar on the device, or 1.
            Gradients are summed over processes, not averaged, so it is the loss scale of fp16 alone.
        text_feature: f_x, float32 ``[b, D]``, where the stage needs it.
        teacher_feature: gives f_t, float32 ``[b, D]``: from the cache of an earlier stage, or computed.
    """

    images: Tensor
    target: Tensor
    size: int
    positive_weight: float = 1.0
    scale: Tensor | float = 1.0
    text_feature: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_feature: Callable[[], Tensor] = lambda: torch.empty(0)

    def bce(self, logit: Tensor) -> Tensor:
        """Returns this micro-batch's part of a mean BCE: sum over b, divided by B. Float32 scalar."""
        weight = None if self.positive_weight == 1 else logit.new_tensor(self.positive_weight)
        total = binary_cross_entropy_with_logits(logit, self.target, pos_weight=weight, reduction="sum")
        return total / self.size

    def residual(self, logit: Tensor, size: int) -> Tensor:
        """Returns (sigmoid(z) - y) / size of each sample, weighted like its loss, ``[b]``, detached.

        With size = B that is the gradient of ``bce`` at the logit.

        sigmoid(z) for y = 0 and -sigmoid(-z) for y = 1: 1 - sigmoid(z) would round to 0 for confident heads.
        """
        sign = 1 - 2 * self.target
        return sign * torch.sigmoid(sign * logit.detach()) * self.sample_weight() / size

    def sample_weight(self) -> Tensor:
        """Returns the loss weight of each sample, ``[b]``."""
        return 1 + (self.positive_weight - 1) * self.target


@dataclass(frozen=True)
class Outcome:
    """What a stage computed of a micro-batch.

    Attributes:
        loss: what is differentiated, unscaled; a sum over b divided by B.
        parts: the losses of the log, likewise, by ``Stage.parts``.
        sums: further figures by ``Stage.sums``, summed over samples; the backward pass may fill them in.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    sums: dict[str, Tensor] = field(default_factory=dict)


class Stage(ABC):
    """One stage of a recipe: what it trains, for how long, and its loss.

    Attributes:
        number: 1 for frozen features, 2 for adapters; settings and logs name stages so.
        title: what a progress bar shows.
        epochs: over the data.
        steps: ends the stage early; 0 does not.
        needs_text: whether ``Batch.text_feature`` is given.
        needs_teacher: whether ``Batch.teacher_feature`` is given.
        keeps_teacher: whether the features that it computes serve a later stage.
        parts: names of its losses, the one that is differentiated first.
        sums: names of further figures, means over samples in the log.
    """

    number: int
    title: str
    epochs: int
    steps: int
    needs_text = False
    needs_teacher = False
    keeps_teacher = False
    parts: tuple[str, ...]
    sums: tuple[str, ...] = ()

    def prepare(self, model: DgsNet) -> list[nn.Parameter]:
        """Freezes all but what this stage trains, sets train or eval mode, and returns what it trains."""
        model.eval().requires_grad_(False)
        trained = self.trained(model)
        for parameter in trained:
            parameter.requires_grad_(True)
        return trained

    @abstractmethod
    def trained(self, model: DgsNet) -> list[nn.Parameter]:
        """Returns the parameters that this stage trains, always in the same order."""

    @abstractmethod
    def losses(self, model: DgsNet, batch: Batch) -> Outcome:
        """Returns the losses of one micro-batch, ready for the backward pass of ``Outcome.loss``."""


@dataclass(frozen=True)
class Recipe:
    """What a name such as "dgs" stands for.

    Attributes:
        name: as in the settings.
        heads: which heads the model has.
        has_adapters: whether the tower gets LoRA.
        needs_captions: whether captions are read and encoded.
        stages: in the order in which they run.
    """

    name: str
    heads: tuple[str, ...]
    has_adapters: bool
    needs_captions: bool
    stages: Callable[[TrainConfig], list[Stage]]
