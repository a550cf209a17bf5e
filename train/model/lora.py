"""LoRA on the query, key and value projections of open_clip's vision attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import CheckpointError, SpecError
from train.config import LoraConfig
from train.model.dropout import Dropout

PROJECTIONS = ("q", "k", "v")


class LoraAttention(nn.Module):
    """open_clip's self-attention with a low-rank path beside the frozen query, key and value weights.

    y = x W^T + b + scale * dropout(x) A^T B^T for each projection that has an adapter; A is drawn
    kaiming-uniform(a = sqrt 5), B starts at zero, so that the start is the base model exactly.

    Args:
        attention: the block's attention, batch first; its parameters are kept and frozen.
        config: rank, scale, dropout and targets.
    """

    def __init__(self, attention: nn.MultiheadAttention, config: LoraConfig) -> None:
        super().__init__()
        if attention.in_proj_weight is None or not attention.batch_first:
            raise SpecError("attention: expected one packed q, k, v projection with the batch first")
        self.width = attention.embed_dim
        self.heads = attention.num_heads
        self.scale = config.scale
        self.enabled = True
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.dropout = Dropout(config.dropout)
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        for name in config.targets:
            down = torch.empty(config.r, self.width)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.lora_a[name] = nn.Parameter(down)
            self.lora_b[name] = nn.Parameter(torch.zeros(self.width, config.r))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Returns (attention output ``[B, S, D]``, None); signature of nn.MultiheadAttention.

        Raises:
            SpecError: cross-attention, a mask or attention weights were asked for.
        """
        if need_weights or attn_mask is not None or key is not query or value is not query:
            raise SpecError("LoRA attention: expected plain self-attention without a mask or weights")
        batch, tokens, _ = query.shape
        packed = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (
            (base + self._adapter(name, query))
            .reshape(batch, tokens, self.heads, self.width // self.heads)
            .transpose(1, 2)
            for name, base in zip(PROJECTIONS, packed.chunk(3, dim=-1), strict=True)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, self.width)), None

    def _adapter(self, name: str, x: Tensor) -> Tensor | float:
        if not self.enabled or name not in self.lora_a:
            return 0.0
        down = functional.linear(self.dropout(x), self.lora_a[name])
        return self.scale * functional.linear(down, self.lora_b[name])

    def merged_in_proj_weight(self) -> Tensor:
        """Returns W + scale * B A for q, k, v stacked, float32 ``[3 D, D]``."""
        merged = self.in_proj_weight.detach().float().clone()
        for index, name in enumerate(PROJECTIONS):
            if name in self.lora_a:
                rows = slice(index * self.width, (index + 1) * self.width)
                merged[rows] += self.scale * (self.lora_b[name].float() @ self.lora_a[name].float()).detach()
        return merged


def add_lora(visual: nn.Module, config: LoraConfig) -> None:
    """Freezes a vision tower and puts an adapter on the attention of every block, in place.

    Raises:
        SpecError: the tower is not one of open_clip's plain vision transformers.
    """
    for parameter in visual.parameters():
        parameter.requires_grad_(False)
    for block in _blocks(visual):
        if not isinstance(block.attn, nn.MultiheadAttention):
            raise SpecError(f"attention: found {type(block.attn).__name__}, expected nn.MultiheadAttention")
        block.attn = LoraAttention(block.attn, config)


def has_adapters(visual: nn.Module) -> bool:
    """Whether ``add_lora`` was called on a tower, and ``merge_lora`` not yet."""
    return any(isinstance(block.attn, LoraAttention) for block in _blocks(visual))


def lora_parameters(visual: nn.Module) -> list[nn.Parameter]:
    """Returns every A and B of a tower, block by block, always in the same order."""
    return [
        parameter
        for attention in _adapted(visual)
        for adapter in (attention.lora_a, attention.lora_b)
        for parameter in adapter.parameters()
    ]


def merge_lora(visual: nn.Module) -> None:
    """Replaces every adapter by plain attention that holds the merged weights, in place, in float32.

    Raises:
        SpecError: an attention has no adapter: merging twice would be wrong.
    """
    for block in _blocks(visual):
        adapted = block.attn
        if not isinstance(adapted, LoraAttention):
            raise SpecError("merge: found attention without an adapter; the weights are merged already")
        plain = nn.MultiheadAttention(adapted.width, adapted.heads, batch_first=True)
        plain.in_proj_weight = nn.Parameter(adapted.merged_in_proj_weight(), requires_grad=False)
        plain.in_proj_bias = adapted.in_proj_bias
        plain.out_proj = adapted.out_proj
        block.attn = plain.eval()


@contextmanager
def lora_disabled(visual: nn.Module) -> Iterator[None]:
    """Inside, the tower computes what the frozen base model computes: the teacher of the same weights."""
    adapted = _adapted(visual)
    for attention in adapted:
        attention.enabled = False
    try:
        yield
    finally:
        for attention in adapted:
            attention.enabled = True


def lora_state(visual: nn.Module) -> dict[str, Tensor]:
    """Returns the adapters by name: ``lora.<block>.<q|k|v>.<a|b>``, ``[r, D]`` and ``[D, r]``."""
    state = {}
    for index, attention in enumerate(_adapted(visual)):
        for name in attention.lora_a:
            state[f"lora.{index}.{name}.a"] = attention.lora_a[name].detach()
            state[f"lora.{index}.{name}.b"] = attention.lora_b[name].detach()
    return state


def load_lora_state(visual: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies adapters into a tower that ``add_lora`` prepared.

    Raises:
        CheckpointError: names or shapes differ from the tower's.
    """
    own = lora_state(visual)
    found = {name: tensor for name, tensor in state.items() if name.startswith("lora.")}
    if set(found) != set(own):
        odd = sorted(set(found) ^ set(own))
        raise CheckpointError(f"LoRA: missing or unknown tensors, first {odd[0]}; is it another backbone?")
    for name, tensor in own.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name}: found shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            )
        tensor.copy_(found[name])


def _adapted(visual: nn.Module) -> list[LoraAttention]:
    return [block.attn for block in _blocks(visual) if isinstance(block.attn, LoraAttention)]


def _blocks(visual: nn.Module) -> Iterator[Any]:
    transformer = getattr(visual, "transformer", None)
    blocks: Any = getattr(transformer, "resblocks", None)
    if blocks is None:
        raise SpecError(
            f"backbone: found {type(visual).__name__}, expected an open_clip ViT such as ViT-B-32"
        )
    yield from blocks
