"""Recipe "dgs": the teacher head on frozen features, then the student under gradient surgery.

Source: arXiv 2511.13108 and the authors' released code.
"""

from __future__ import annotations

from torch import nn

from train.config import TrainConfig
from train.model.detector import DgsNet
from train.model.lora import lora_parameters
from train.recipes.base import Batch, Outcome, Recipe, Stage
from train.recipes.lora import PlainStudent
from train.surgery import operate_on


class TeacherHead(Stage):
    """Stage 1: fits h_t by BCE on the frozen image features f_t; nothing else changes."""

    number = 1
    title = "stage 1, teacher head"
    keeps_teacher = True
    needs_teacher = True
    parts = ("loss_teacher",)

    def __init__(self, config: TrainConfig) -> None:
        self.epochs = config.schedule.stage1_epochs
        self.steps = config.schedule.stage1_steps

    def trained(self, model: DgsNet) -> list[nn.Parameter]:
        """The teacher head."""
        return list(model.head_teacher.parameters())

    def losses(self, model: DgsNet, batch: Batch) -> Outcome:
        """BCE(h_t(f_t), y)."""
        loss = batch.bce(model.head_teacher(batch.teacher_feature()).squeeze(1))
        return Outcome(loss, {"loss_teacher": loss})


class StudentUnderSurgery(PlainStudent):
    """Stage 2: trains LoRA, h_img and h_txt with L_img + L_text, the gradient at f operated on.

    h_t is frozen. The heads' own gradients are untouched by the surgery.
    """

    title = "stage 2, student under surgery"
    needs_text = True
    needs_teacher = True
    parts = ("loss", "loss_image", "loss_text", "loss_teacher")
    sums = ("task", "removed", "help", "direction")

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self._surgery = config.surgery

    def trained(self, model: DgsNet) -> list[nn.Parameter]:
        """Adapters, the image head and the text head."""
        return [
            *lora_parameters(model.visual), *model.head_image.parameters(), *model.head_text.parameters()
        ]  # fmt: skip

    def losses(self, model: DgsNet, batch: Batch) -> Outcome:
        """L_img + L_text; L_help is added by the surgery at f and never enters autograd."""
        feature = model.encode(batch.images)
        teacher_logit = model.head_teacher(batch.teacher_feature()).squeeze(1)
        text_logit = model.head_text(batch.text_feature.detach()).squeeze(1)
        loss_image = batch.bce(model.head_image(feature).squeeze(1))
        loss_text = batch.bce(text_logit)
        sums = operate_on(
            feature, model, batch, text_logit=text_logit, teacher_logit=teacher_logit, config=self._surgery
        )
        parts = {
            "loss": (loss_image + loss_text).detach(),
            "loss_image": loss_image.detach(),
            "loss_text": loss_text.detach(),
            "loss_teacher": batch.bce(teacher_logit).detach(),
        }
        return Outcome(loss_image + loss_text, parts, sums)


DGS = Recipe(
    "dgs",
    heads=("image", "teacher", "text"),
    has_adapters=True,
    needs_captions=True,
    stages=lambda config: [TeacherHead(config), StudentUnderSurgery(config)],
)
