"""The weights of an open_clip vision transformer as numpy arrays, and what the graph must know of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CheckpointError, SpecError
from runtime.spec import MOSAIC_SIDE

Array = NDArray[np.float32]
ACTIVATIONS = ("GELU", "QuickGELU")


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: weight ``[D]``, bias ``[D]``, epsilon."""

    weight: Array
    bias: Array
    eps: float


@dataclass(frozen=True)
class Linear:
    """A linear layer: weight ``[out, in]``, bias ``[out]`` or None."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Block:
    """One transformer block; adapters are merged into ``in_proj`` (q, k, v stacked)."""

    ln_1: Norm
    in_proj: Linear
    out_proj: Linear
    scale_1: Array | None
    ln_2: Norm
    fc: Linear
    proj: Linear
    scale_2: Array | None


@dataclass(frozen=True)
class Tower:
    """A vision transformer with class-token pooling.

    Attributes:
        conv: patch embedding, float32 ``[D, 3, p, p]``, stride p.
        tokens: class embedding and position embeddings added up, float32 ``[1 + (224 / p)^2, D]``.
        ln_pre: None where the tower has none.
        blocks: from input to output.
        ln_post: on the class token.
        projection: float32 ``[D, E]``.
        heads: attention heads of every block.
        activation: "GELU" (exact) or "QuickGELU".
    """

    conv: Array
    tokens: Array
    ln_pre: Norm | None
    blocks: tuple[Block, ...]
    ln_post: Norm
    projection: Array
    heads: int
    activation: str


def tower_from_torch(visual: Any) -> Tower:
    """Reads an open_clip vision transformer; adapters on its attention are merged on the way.

    The arrays share the module's memory, but for merged ones and the positions.

    Raises:
        SpecError: a part that the graph cannot express.
        CheckpointError: a weight is not finite.
    """
    kind = type(visual).__name__
    if kind != "VisionTransformer":
        raise SpecError(
            f"backbone: found {kind}, expected open_clip's VisionTransformer (ViT-B-32, ViT-L-14, ...)"
        )
    if (
        visual.attn_pool is not None
        or visual.pool_type != "tok"
        or visual.proj is None
        or visual.output_tokens
    ):
        raise SpecError(
            "backbone: expected class-token pooling and a projection; other pooling is not exported"
        )
    for name, tensor in visual.state_dict().items():
        if not _is_finite(tensor):
            raise CheckpointError(f"{name}: holds NaN or Inf; the checkpoint is damaged or training diverged")
    blocks = list(visual.transformer.resblocks)
    activations = {type(block.mlp.gelu).__name__ for block in blocks}
    approximate = {getattr(block.mlp.gelu, "approximate", "none") for block in blocks}
    if len(activations) != 1 or not activations <= set(ACTIVATIONS) or approximate != {"none"}:
        raise SpecError(f"backbone: found activations {sorted(activations)}, expected one of {ACTIVATIONS}")
    conv = _array(visual.conv1.weight)
    grid = MOSAIC_SIDE // conv.shape[2]
    tokens = _array(visual.positional_embedding)
    if visual.conv1.bias is not None or tokens.shape[0] != grid * grid + 1:
        raise SpecError(
            f"backbone: found {tokens.shape[0]} positions, expected {grid * grid + 1} for 224 pixels"
        )
    # The class token's row is padded with zeros in the graph, so its embedding joins its position here:
    # the same float32 sum that torch computes, and no node that copies a token along the batch.
    tokens = tokens.copy()
    tokens[0] += _array(visual.class_embedding)
    return Tower(
        conv=conv,
        tokens=tokens,
        ln_pre=None if type(visual.ln_pre).__name__ == "Identity" else _norm(visual.ln_pre),
        blocks=tuple(_block(f"block {index}", block) for index, block in enumerate(blocks)),
        ln_post=_norm(visual.ln_post),
        projection=_array(visual.proj),
        heads=_heads(blocks),
        activation=activations.pop(),
    )


def _block(name: str, block: Any) -> Block:
    attention = block.attn
    return Block(
        ln_1=_norm(block.ln_1),
        in_proj=Linear(_packed_weight(name, attention), _array(attention.in_proj_bias)),
        out_proj=_linear(attention.out_proj),
        scale_1=_layer_scale(block.ls_1),
        ln_2=_norm(block.ln_2),
        fc=_linear(block.mlp.c_fc),
        proj=_linear(block.mlp.c_proj),
        scale_2=_layer_scale(block.ls_2),
    )


def _packed_weight(name: str, attention: Any) -> Array:
    """Returns q, k, v stacked; merged by the adapter's own sum where there is one."""
    if hasattr(attention, "merged_in_proj_weight"):
        merged = attention.merged_in_proj_weight()
        if not _is_finite(merged):
            raise CheckpointError(f"{name}: its merged adapter holds NaN or Inf; training diverged")
        return _array(merged)
    if type(attention).__name__ != "MultiheadAttention" or attention.in_proj_weight is None:
        raise SpecError(f"{name}: found {type(attention).__name__}, expected nn.MultiheadAttention")
    return _array(attention.in_proj_weight)


def _heads(blocks: list[Any]) -> int:
    counts = {int(getattr(block.attn, "num_heads", 0) or block.attn.heads) for block in blocks}
    if len(counts) != 1:
        raise SpecError(f"backbone: found blocks of {sorted(counts)} heads, expected one number for all")
    return counts.pop()


def _layer_scale(module: Any) -> Array | None:
    return None if type(module).__name__ == "Identity" else _array(module.gamma)


def _norm(module: Any) -> Norm:
    return Norm(_array(module.weight), _array(module.bias), float(module.eps))


def _linear(module: Any) -> Linear:
    return Linear(_array(module.weight), None if module.bias is None else _array(module.bias))


def _array(tensor: Any) -> Array:
    array: Array = tensor.detach().cpu().float().numpy()
    return array


def _is_finite(tensor: Any) -> bool:
    """Whether no number is NaN or infinite; NaN wins both minimum and maximum."""
    # Three times as fast as isfinite().all(), which writes a truth value for each of them.
    return not tensor.numel() or all(math.isfinite(float(end)) for end in tensor.aminmax())
