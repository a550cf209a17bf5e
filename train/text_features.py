"""Text features of the captions, computed once: the text tower leaves memory after that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.console import Progress
from train.backbone import tokenizer

TEXT_BATCH = 256


@torch.no_grad()
def encode_captions(clip: Any, backbone: str, captions: list[str], device: str) -> Tensor:
    """Returns f_x, the frozen text feature of every caption, float32 ``[N, D]`` on the CPU, not normalised.

    Equal captions are encoded once.

    Args:
        clip: open_clip model with its text tower, in eval mode, on ``device``.
        backbone: model name, for its tokenizer.
        captions: one per sample.
        device: where ``clip`` is.
    """
    distinct = sorted(set(captions))
    tokenize = tokenizer(backbone)
    rows = []
    with Progress("encoding captions", len(distinct)) as progress:
        for start in range(0, len(distinct), TEXT_BATCH):
            texts = distinct[start : start + TEXT_BATCH]
            rows.append(clip.encode_text(tokenize(texts).to(device)).float().cpu())
            progress.advance(len(texts))
    place = {text: index for index, text in enumerate(distinct)}
    return torch.cat(rows)[[place[text] for text in captions]]
