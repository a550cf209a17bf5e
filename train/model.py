"""The detector in PyTorch: mosaic in, logit and embedding out, with the heads of all three branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.spec import IMAGE_MEAN, IMAGE_STD
from train.lora import lora_disabled


class DgsNet(nn.Module):
    """CLIP's vision tower with an image head, and the teachers' heads that training needs.

    Args:
        visual: open_clip vision tower, usually with adapters.
        embed_dim: width D of its output.
    """

    def __init__(self, visual: nn.Module, embed_dim: int) -> None:
        super().__init__()
        self.visual = visual
        self.head_image = nn.Linear(embed_dim, 1)
        self.head_teacher = nn.Linear(embed_dim, 1)
        self.head_text = nn.Linear(embed_dim, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Returns the student feature f, float32 ``[B, D]``, not normalised.

        Args:
            images: mosaics, uint8 ``[B, 224, 224, 3]``, RGB.
        """
        scaled = images.permute(0, 3, 1, 2).float() / 255.0
        return self.visual((scaled - self.mean) / self.std).float()

    @torch.no_grad()
    def encode_teacher(self, images: Tensor) -> Tensor:
        """Returns the frozen teacher feature f_t of the same mosaics, float32 ``[B, D]``."""
        with lora_disabled(self.visual):
            return self.encode(images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (logit ``[B]``, embedding ``[B, D]``), float32: the graph contract."""
        feature = self.encode(images)
        return self.head_image(feature).squeeze(1), feature

    def heads_state(self) -> dict[str, Tensor]:
        """Returns the three heads by their checkpoint names, such as ``head_image.weight``."""
        return {k: v.detach() for k, v in self.state_dict().items() if k.startswith("head_")}
