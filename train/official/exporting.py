"""A run becomes the authors' checkpoint again: the one place of the project that pickles.

Peak memory for ViT-L/14: 4.0 GiB (measured), what loading the run takes; the file has 3.4 GB.

Every tensor is written on its own, so that a reader which keeps the tensors it loaded does not tie the
student's weights to the frozen copy's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError, UsageError
from runtime.files import written_atomically
from runtime.names import printable_name
from train.checkpoint import Checkpoint, load_checkpoint
from train.model.backbone import base_state, load_clip
from train.model.lora import PROJECTIONS, lora_state
from train.official.architecture import backbone_with_quickgelu, clip_shapes, clip_without_memory
from train.official.names import FROZEN, HEADS, VISUAL, adapter_names, official_shapes, student_names
from train.official.provenance import IMPORTED, TEXT_TOWER_NAME
from train.official.reading import sha256_of
from train.official.univfd import univfd_state

logger = logging.getLogger("dgsnet")


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    Attributes:
        format: "dgs-net" or "univfd".
        tensors: how many.
        merged: whether the weights hold the adapters; None where there are none.
        alpha: what the authors' ``--alpha`` must be, alpha / sqrt(r) being their scale; 0 without adapters.
    """

    format: str
    tensors: int
    merged: bool | None = None
    alpha: float = 0.0


def export_official(
    run: Path, file: Path, *, merged: bool = False, pretrained: str | None = None, overwrite: bool = False
) -> ExportSummary:
    """Writes a "dgs" run in the authors' format, or the head of a "linear" run as UnivFD's.

    Args:
        run: holds a checkpoint.
        file: the .pth to write.
        merged: write weights that hold the adapters already, as a file saved after ``.eval()`` does.
        pretrained: weight file or hub tag of the run's CLIP, where its text tower cannot be had otherwise.
        overwrite: replace a file.

    Raises:
        UsageError: the format cannot express the run, a flag does not apply, or the file exists.
        CheckpointError: the run is damaged, or the text tower is another CLIP's.
        DataError: the text tower cannot be had.
    """
    _require_place(file, overwrite=overwrite)
    checkpoint = load_checkpoint(run)
    if checkpoint.config.recipe == "linear":
        if merged or pretrained:
            raise UsageError(
                f"{run}: a linear run is written as a head alone; leave --merged and --pretrained out"
            )
        state = univfd_state(checkpoint.model)
        with written_atomically(file) as stream:
            torch.save(state, stream)
        logger.warning("UnivFD's code feeds centre crops with CLIP's mean and deviation, a run mosaics")
        return ExportSummary("univfd", len(state))
    _require_expressible(run, checkpoint)
    state = _official_state(checkpoint, _text_tower(run, checkpoint, pretrained), merged=merged)
    with written_atomically(file) as stream:
        torch.save(state, stream)
    lora = checkpoint.config.lora
    alpha = lora.scale * math.sqrt(lora.r)
    if not math.isclose(alpha, 6.0):
        logger.warning("the authors' code needs --alpha %.6g here: its scale is alpha / sqrt(r)", alpha)
    return ExportSummary("dgs-net", len(state), merged, alpha)


def _require_place(file: Path, *, overwrite: bool) -> None:
    place = printable_name(str(file))
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"{place}: found no folder to write in, or a folder of that name; name a .pth file")
    if file.exists() and not overwrite:
        raise UsageError(f"{place}: exists already; choose another or give --overwrite")


def _require_expressible(run: Path, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    wanted = {
        "recipe": (config.recipe, "dgs"),
        "surgery.text_head": (config.surgery.text_head, "linear"),
        "lora.targets": (sorted(config.lora.targets), sorted(PROJECTIONS)),
    }
    for key, (found, expected) in wanted.items():
        if found != expected:
            raise UsageError(
                f"{run}: {key}: found {found}, expected {expected}; the authors' format holds nothing else"
            )
    info = checkpoint.backbone
    if not info.quick_gelu and backbone_with_quickgelu(info.name)[1]:
        raise UsageError(
            f"{run}: trained on {info.name} with GELU, expected QuickGELU: whoever reads the authors' format "
            "computes that, and every verdict would be off"
        )


def _text_tower(run: Path, checkpoint: Checkpoint, pretrained: str | None) -> dict[str, Tensor]:
    """Returns a CLIP's tensors but for the vision tower's: stored by the import, or from the same CLIP."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    imported = checkpoint.record["data"].get(IMPORTED, {})
    stored = imported.get("text_tower_sha256")
    path = run / TEXT_TOWER_NAME
    if stored and not pretrained:
        try:
            if sha256_of(path) != stored:
                raise CheckpointError(f"{path}: changed or damaged (SHA-256 differs); import the file again")
            return load_file(path)
        except (OSError, SafetensorError) as err:
            raise CheckpointError(
                f"{path}: cannot be read ({err}); import the file again, or give --pretrained"
            ) from err
    info = checkpoint.backbone
    if info.pretrained.startswith("file:") and not pretrained:
        raise UsageError(
            f"{run}: trained on the CLIP of {info.pretrained.removeprefix('file:')}, whose text tower is "
            "not in it; give that file with --pretrained"
        )
    clip, loaded = load_clip(info.name, pretrained or info.pretrained, seed=checkpoint.config.seed)
    if loaded.sha256 != info.sha256:
        raise CheckpointError(
            f"{info.name} with {printable_name(pretrained or info.pretrained)}: its vision tower is not the "
            "one that the run was trained on; give the same weights with --pretrained"
        )
    return {name: tensor for name, tensor in clip.state_dict().items() if not name.startswith(VISUAL)}


def _official_state(checkpoint: Checkpoint, text: Mapping[str, Tensor], *, merged: bool) -> dict[str, Tensor]:
    """Returns the file's tensors, float32, in its order; the student's are copies."""
    model, info = checkpoint.model, checkpoint.backbone
    clip = {VISUAL + name: tensor for name, tensor in base_state(model.visual).items()} | dict(text)
    shapes = clip_shapes(clip_without_memory(info.name))
    odd = [name for name, shape in shapes.items() if name not in clip or tuple(clip[name].shape) != shape]
    if odd or set(clip) != set(shapes):
        first = (odd + sorted(set(clip) - set(shapes)))[0]
        raise CheckpointError(f"text tower of {info.name}: {first} is missing, unknown or of another shape")
    visual: Any = model.visual
    state: dict[str, Tensor] = {}
    for name in shapes:
        state[FROZEN + name] = student = clip[name].detach().float()
        targets = student_names(name)
        if merged and len(targets) == 3 and name.endswith("weight"):
            student = visual.transformer.resblocks[int(name.split(".")[3])].attn.merged_in_proj_weight()
        parts = student.chunk(3) if len(targets) == 3 else (student,)
        state |= {target: part.clone() for target, part in zip(targets, parts, strict=True)}
    for name, tensor in lora_state(model.visual).items():
        _, block, projection, kind = name.split(".")
        state[adapter_names(int(block), projection)["ab".index(kind)]] = tensor
    for name, tensor in model.heads_state().items():
        ours, _, kind = name.rpartition(".")
        state[f"{HEADS[ours]}.{kind}"] = tensor
    order = official_shapes(shapes, checkpoint.config.lora.r)
    return {name: state[name].contiguous() for name in order}
