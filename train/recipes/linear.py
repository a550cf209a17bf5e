"""Recipe "linear": one affine head on the frozen image features. The UnivFD baseline, on patch mosaics."""

from __future__ import annotations

from torch import nn

from train.config import TrainConfig
from train.model.detector import DgsNet
from train.recipes.base import Batch, Outcome, Recipe, Stage


class LinearHead(Stage):
    """Fits h_img by BCE on f_t."""

    number = 1
    title = "stage 1, linear head"
    parts = ("loss_image",)

    def __init__(self, config: TrainConfig) -> None:
        self.epochs = config.schedule.stage1_epochs
        self.steps = config.schedule.stage1_steps

    def trained(self, model: DgsNet) -> list[nn.Parameter]:
        """The image head."""
        return list(model.head_image.parameters())

    def losses(self, model: DgsNet, batch: Batch) -> Outcome:
        """BCE(h_img(f_t), y)."""
        loss = batch.bce(model.head_image(model.encode_teacher(batch.images)).squeeze(1))
        return Outcome(loss, {"loss_image": loss})


LINEAR = Recipe(
    "linear",
    heads=("image",),
    has_adapters=False,
    needs_captions=False,
    stages=lambda config: [LinearHead(config)],
)
