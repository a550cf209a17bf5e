"""The detector in PyTorch: mosaic in, logit and embedding out, with the heads that its recipe trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runtime.spec import IMAGE_MEAN, IMAGE_STD
from train.model.lora import lora_disabled

HEAD_PREFIX = "head_"


class DgsNet(nn.Module):
    """CLIP's vision tower with an image head, and the teachers' heads where the recipe trains them.

    A head that the recipe has not is no attribute. ``head_text`` is affine, or has one hidden layer.

    Args:
        visual: open_clip vision tower, with adapters or without.
        embed_dim: width D of its output.
        heads: some of "image", "teacher", "text"; "image" is always there.
        text_hidden: width of the text head's hidden layer; 0 makes it affine.
    """

    head_teacher: nn.Linear
    head_text: nn.Module

    def __init__(
        self,
        visual: nn.Module,
        embed_dim: int,
        *,
        heads: Sequence[str] = ("image", "teacher", "text"),
        text_hidden: int = 0,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.head_image = nn.Linear(embed_dim, 1)
        if "teacher" in heads:
            self.head_teacher = nn.Linear(embed_dim, 1)
        if "text" in heads:
            self.head_text = _text_head(embed_dim, text_hidden)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)
        self._half: torch.dtype | None = None
        # Not a submodule: a compiled tower would list every weight a second time under another name.
        self._compiled: list[Any] = []

    def encode(self, images: Tensor) -> Tensor:
        """Returns the student feature f, float32 ``[B, D]``, not normalised, outside autocast.

        Args:
            images: mosaics, uint8 ``[B, 224, 224, 3]``, RGB.
        """
        # In place on the fresh copy: the same numbers without two more passes over memory.
        pixels = images.permute(0, 3, 1, 2).float().div_(255.0).sub_(self.mean).div_(self.std)
        tower = self._compiled[0] if self._compiled else self.visual
        with torch.autocast(images.device.type, dtype=self._half, enabled=self._half is not None):
            feature = tower(pixels)
        return feature.float()

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
        """Returns the heads by their checkpoint names, such as ``head_image.weight``."""
        return {k: v.detach() for k, v in self.state_dict().items() if k.startswith(HEAD_PREFIX)}

    @contextmanager
    def arithmetic(self, half: torch.dtype | None, *, compiled: bool = False) -> Iterator[None]:
        """Inside, the tower runs under autocast in ``half`` (None: float32), through torch.compile if asked.

        Scoring outside is float32 and eager, as what is exported will be compared with.
        """
        before = self._half, self._compiled
        self._half = half
        self._compiled = [torch.compile(self.visual)] if compiled else []
        try:
            yield
        finally:
            self._half, self._compiled = before


def _text_head(embed_dim: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(embed_dim, 1)
    return nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, 1))
