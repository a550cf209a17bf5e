"""The student of the authors' file beside the frozen copy of the same file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from runtime.errors import CheckpointError
from train.model.lora import PROJECTIONS
from train.official.merged import Projection
from train.official.names import FROZEN, adapter_names, block_count, student_names


def check_untouched(place: str, state: Mapping[str, Tensor], clip_names: Iterable[str]) -> None:
    """Compares the student with the frozen copy where training never changes it: all but q, k, v weights.

    Raises:
        CheckpointError: a tensor differs.
    """
    for name in clip_names:
        frozen = state[FROZEN + name]
        targets = student_names(name)
        if len(targets) == 3 and name.endswith("weight"):
            continue
        parts = frozen.chunk(3) if len(targets) == 3 else (frozen,)
        for target, part in zip(targets, parts, strict=True):
            if not torch.equal(state[target].float(), part.float()):
                raise CheckpointError(
                    f"{place}: {target} differs from the frozen copy in the same file, expected equality: "
                    "DGS-Net trains adapters and heads alone; get the file as it was saved"
                )


def projections_of(state: Mapping[str, Tensor], clip_names: Iterable[str]) -> list[Projection]:
    """Returns every projection that has adapters; its tensors are views of ``state``."""
    found = []
    for block in range(block_count(clip_names)):
        packed = f"visual.transformer.resblocks.{block}.attn.in_proj_weight"
        rows = state[FROZEN + packed].chunk(3)
        for projection, weight, base in zip(PROJECTIONS, student_names(packed), rows, strict=True):
            down, up = adapter_names(block, projection)
            found.append(Projection(weight, state[weight], base, state[down], state[up]))
    return found
