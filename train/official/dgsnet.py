"""The authors' stage-2 checkpoint becomes a run: base weights, unmerged adapters, heads, text tower.

No hub can be relied on to have the same base weights, so the run holds them, and it needs no download. For
ViT-L/14 the peak is 6.3 GiB of resident memory (measured), of which 3.2 GiB are the mapped file, which the
system may drop at any time; the rest is the run's 1.2 GB of base weights while they are encoded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.files import write_atomically
from runtime.names import printable_name
from train.checkpoint import save_checkpoint
from train.config import TrainConfig
from train.model.backbone import BackboneInfo, weights_sha256
from train.model.detector import DgsNet
from train.model.lora import PROJECTIONS, load_lora_state
from train.official.architecture import (
    backbone_from_shapes,
    backbone_with_quickgelu,
    clip_shapes,
    clip_without_memory,
)
from train.official.merged import Verdict, examine
from train.official.names import (
    FROZEN,
    HEADS,
    VISUAL,
    adapter_names,
    check_table,
    official_shapes,
    rank_of,
)
from train.official.provenance import IMPORTED, TEXT_TOWER_NAME, ImportSummary, describe
from train.official.reading import check_finite
from train.official.student import check_untouched, projections_of
from train.recipes import build_model

logger = logging.getLogger("dgsnet")


def import_dgsnet(
    file: Path,
    state: dict[str, Tensor],
    run: Path,
    *,
    backbone: str | None = None,
    alpha: float = 6.0,
    scaling: str | None = None,
) -> ImportSummary:
    """Writes RUN from the authors' stage-2 checkpoint.

    Args:
        file: where ``state`` was read from.
        state: what ``read_state`` returned.
        run: folder of the run; made where it is missing.
        backbone: open_clip's name; None finds it by the shapes.
        alpha: numerator of the LoRA scale, which is not in the file.
        scaling: "rslora" or "lora"; None lets a merged file tell and assumes "rslora" of an unmerged one.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or not finite, the two CLIPs differ
            where training never touches them, or the adapters are not clearly merged or unmerged.
        UsageError: the backbone is unknown or does not fit the method, or alpha is out of range.
    """
    place = printable_name(file.name)
    name, quick_gelu = (backbone_from_shapes(state), True) if backbone is None else (
        backbone_with_quickgelu(backbone)
    )  # fmt: skip
    clip = clip_without_memory(name)
    shapes = clip_shapes(clip)
    rank = rank_of(state)
    config = TrainConfig(backbone=name, pretrained=f"file:{place}").with_values(
        [("lora.r", rank), ("lora.alpha", alpha)]
    )
    check_table(place, state, official_shapes(shapes, rank), name)
    check_finite(place, state)
    check_untouched(place, state, list(shapes))
    verdict = examine(projections_of(state, shapes), rank=rank, alpha=alpha, scaling=scaling)
    config = config.with_value("lora.scaling", verdict.scaling)
    _report(verdict, config, told=scaling is not None)

    model = _model_of(clip.visual, state, config)
    info = BackboneInfo(
        name, config.pretrained, quick_gelu, int(clip.visual.output_dim), weights_sha256(clip.visual)
    )
    record = describe(file, "dgs-net") | {
        "merged": verdict.merged, "scale": config.lora.scale, "measured_scale": verdict.measured
    }  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    record["text_tower_sha256"] = _write_text_tower(run, state)
    save_checkpoint(run, model, config, info, {IMPORTED: record})
    return ImportSummary(
        "dgs-net", name, verdict.merged, verdict.untrained, rank, verdict.scaling, config.lora.scale,
        verdict.measured,
    )  # fmt: skip


def _model_of(visual: Any, state: Mapping[str, Tensor], config: TrainConfig) -> DgsNet:
    prefix = FROZEN + VISUAL
    base = {
        name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)
    }
    # Assigned, not copied: float32 weights stay views of the file until they are written.
    visual.load_state_dict(base, strict=True, assign=True)
    model = build_model(visual, int(visual.output_dim), config)
    adapters = {}
    for block in range(len(visual.transformer.resblocks)):
        for projection in PROJECTIONS:
            down, up = adapter_names(block, projection)
            adapters[f"lora.{block}.{projection}.a"] = state[down].float()
            adapters[f"lora.{block}.{projection}.b"] = state[up].float()
    load_lora_state(visual, adapters)
    heads = model.heads_state()
    for ours, theirs in HEADS.items():
        for kind in ("weight", "bias"):
            heads[f"{ours}.{kind}"].copy_(state[f"{theirs}.{kind}"])
    return model.eval().requires_grad_(False)


def _write_text_tower(run: Path, state: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    prefix = FROZEN + VISUAL
    encoded = save(
        {
            name.removeprefix(FROZEN): tensor.contiguous()
            for name, tensor in state.items()
            if name.startswith(FROZEN) and not name.startswith(prefix)
        }
    )
    write_atomically(run / TEXT_TOWER_NAME, encoded)
    return hashlib.sha256(encoded).hexdigest()


def _report(verdict: Verdict, config: TrainConfig, *, told: bool) -> None:
    lora = config.lora
    scale = f"{lora.scale:.4g} ({lora.scaling}, alpha {lora.alpha:.4g}, r {lora.r})"
    if verdict.merged:
        logger.info(
            "the file's weights hold the adapters already, with a scale of %s, measured %.6g; the run holds "
            "them unmerged. The authors' own test script would add them once more", scale, verdict.measured,
        )  # fmt: skip
    elif verdict.untrained:
        logger.warning("every adapter of the file is zero: the student is CLIP itself")
    if not verdict.merged:
        reason = "as asked" if told else "as CLIP-LoRA's layers compute it"
        logger.info("the file's weights are unmerged, and so do not tell the scale: %s, %s", scale, reason)
