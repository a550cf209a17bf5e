"""Recipe "lora": adapters and the image head under the task loss alone, the baseline without surgery."""

from __future__ import annotations

from torch import nn

from train.config import TrainConfig
from train.model.detector import DgsNet
from train.model.lora import lora_parameters
from train.recipes.base import Batch, Outcome, Recipe, Stage


class PlainStudent(Stage):
    """Trains LoRA and h_img by BCE."""

    number = 2
    title = "stage 2, student"
    parts: tuple[str, ...] = ("loss_image",)

    def __init__(self, config: TrainConfig) -> None:
        self.epochs = config.schedule.stage2_epochs
        self.steps = config.schedule.stage2_steps

    def prepare(self, model: DgsNet) -> list[nn.Parameter]:
        """As every stage, with the adapters' dropout on."""
        trained = super().prepare(model)
        model.train()
        return trained

    def trained(self, model: DgsNet) -> list[nn.Parameter]:
        """Adapters and the image head."""
        return [*lora_parameters(model.visual), *model.head_image.parameters()]

    def losses(self, model: DgsNet, batch: Batch) -> Outcome:
        """BCE(h_img(f), y)."""
        loss = batch.bce(model.head_image(model.encode(batch.images)).squeeze(1))
        return Outcome(loss, {"loss_image": loss})


LORA = Recipe(
    "lora",
    heads=("image",),
    has_adapters=True,
    needs_captions=False,
    stages=lambda config: [PlainStudent(config)],
)
