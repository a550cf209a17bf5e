"""UnivFD's linear head, ``fc_weights.pth``: {weight ``[1, D]``, bias ``[1]``} on a frozen CLIP's features.

UnivFD trained it on centre crops normalised by CLIP's mean and deviation. A dgsnet run feeds mosaics of
patches normalised by ImageNet's, so the head sees other features than it was fitted to, and its published
accuracy does not carry over. Importing it is an error unless that was asked for.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from runtime.errors import CheckpointError, UsageError
from runtime.names import printable_name
from train.checkpoint import save_checkpoint
from train.config import TrainConfig
from train.model.backbone import load_clip
from train.model.detector import DgsNet
from train.official.architecture import RELEASED_BACKBONE
from train.official.provenance import IMPORTED, ImportSummary, describe
from train.recipes import build_model

logger = logging.getLogger("dgsnet")

NOTE = (
    "UnivFD trained this head on centre crops with CLIP's mean and deviation; a run feeds it mosaics of "
    "patches with ImageNet's, so its published accuracy does not carry over"
)


def import_univfd(
    file: Path,
    state: dict[str, Tensor],
    run: Path,
    *,
    backbone: str | None,
    pretrained: str | None,
    as_mosaic_head: bool,
) -> ImportSummary:
    """Writes RUN, of the recipe "linear", from UnivFD's head.

    Args:
        file: where ``state`` was read from.
        state: weight ``[1, D]`` and bias ``[1]``.
        run: folder of the run; made where it is missing.
        backbone: open_clip's name; None means ViT-L-14-quickgelu.
        pretrained: hub tag, local weight file or "random"; None means "openai".
        as_mosaic_head: accepts that the head will see other features than it was trained on.

    Raises:
        UsageError: not accepted, or a backbone without QuickGELU.
        CheckpointError: shapes that do not fit the backbone, or NaN.
        DataError: the backbone's weights cannot be had.
    """
    if not as_mosaic_head:
        raise UsageError(f"{printable_name(file.name)}: {NOTE}; give --as-mosaic-head to accept that")
    config = TrainConfig(
        recipe="linear", backbone=backbone or RELEASED_BACKBONE, pretrained=pretrained or "openai"
    )
    clip, info = load_clip(config.backbone, config.pretrained, seed=config.seed)
    if not info.quick_gelu:
        raise UsageError(
            f"backbone {info.name} with {info.pretrained}: computes GELU, expected the QuickGELU of OpenAI's "
            f"CLIP that UnivFD was trained on; give --backbone {RELEASED_BACKBONE}"
        )
    expected = {"weight": (1, info.embed_dim), "bias": (1,)}
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{printable_name(file.name)}: {name}: found shape {list(state[name].shape)}, expected "
                f"{list(shape)} on {info.name}; give the --backbone that it was trained on"
            )
    model = build_model(clip.visual, info.embed_dim, config)
    heads = model.heads_state()
    for name in expected:
        heads[f"head_image.{name}"].copy_(state[name])
    logger.warning("%s", NOTE)
    run.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run, model, config, info, {IMPORTED: describe(file, "univfd") | {"note": NOTE}})
    return ImportSummary("univfd", info.name)


def univfd_state(model: DgsNet) -> dict[str, Tensor]:
    """Returns the image head under UnivFD's names: weight ``[1, D]`` and bias ``[1]``, float32."""
    head = model.head_image
    return {"weight": head.weight.detach().clone(), "bias": head.bias.detach().clone()}
