"""The CLIP that a file belongs to: open_clip's model without memory, found by name or by shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.spec import MOSAIC_SIDE
from train.model.backbone import check_tower, import_open_clip, open_clip_with
from train.official.names import FROZEN, block_count

logger = logging.getLogger("dgsnet")

RELEASED_BACKBONE = "ViT-L-14-quickgelu"
_TWIN = "-quickgelu"
# OpenAI's code derives the number of heads from the width; no tensor tells it.
_HEAD_WIDTH = 64


def clip_without_memory(name: str) -> Any:
    """Returns an open_clip model on the meta device: names and shapes, no values.

    Raises:
        UsageError: an unknown name, or a tower that ``check_tower`` refuses.
        MissingDependencyError: open_clip is not installed.
    """
    open_clip = open_clip_with(name)
    with torch.device("meta"):
        clip = open_clip.create_model(name, pretrained=None, device="meta")
    check_tower(name, clip.visual)
    return clip.eval()


def clip_shapes(clip: Any) -> dict[str, tuple[int, ...]]:
    """Returns every name and shape of a CLIP's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in clip.state_dict().items()}


def backbone_with_quickgelu(name: str) -> tuple[str, bool]:
    """Returns (name, quick_gelu) of the model to build for weights in OpenAI's naming.

    OpenAI's CLIP computes QuickGELU, and no tensor betrays it. So a name that has a ``-quickgelu`` twin
    stands for the twin; one that has none is taken at its word, which is said.
    """
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name) or {}
    if config.get("quick_gelu", False):
        return name, True
    twin = f"{name}{_TWIN}"
    if twin in open_clip.list_models():
        logger.info("backbone %s: the authors' weights need QuickGELU, so %s is built", name, twin)
        return twin, True
    if config:
        logger.warning(
            "backbone %s computes GELU, where the authors' code computes QuickGELU; right only for a file "
            "that export-official wrote from a run of this backbone", name,
        )  # fmt: skip
    return name, False


def backbone_from_shapes(state: Mapping[str, Tensor]) -> str:
    """Returns the QuickGELU model that has the shapes of the file's frozen copy.

    Where none has all of them, the one that comes near, or the released model: the comparison of the whole
    table then says what differs.
    """
    frozen = {
        name.removeprefix(FROZEN): tuple(tensor.shape)
        for name, tensor in state.items()
        if name.startswith(FROZEN)
    }
    open_clip = import_open_clip()
    near = [
        name
        for name in sorted(open_clip.list_models())
        if _could_be(open_clip.get_model_config(name), frozen)
    ]
    for name in near:
        if clip_shapes(clip_without_memory(name)) == frozen:
            return name
    return near[0] if near else RELEASED_BACKBONE


def _could_be(config: dict[str, Any], frozen: dict[str, tuple[int, ...]]) -> bool:
    """Whether a few facts agree, so that only one or two models are built."""
    vision = config["vision_cfg"]
    return (
        bool(config.get("quick_gelu"))
        and vision.get("head_width", _HEAD_WIDTH) == _HEAD_WIDTH
        and vision.get("image_size") == MOSAIC_SIDE
        and vision.get("layers") == block_count(frozen)
        and frozen.get("visual.conv1.weight")
        == (vision.get("width"), 3, vision.get("patch_size"), vision.get("patch_size"))
        and frozen.get("visual.proj", ())[-1:] == (config["embed_dim"],)
        and frozen.get("token_embedding.weight", ())[:1] == (config["text_cfg"].get("vocab_size"),)
    )
