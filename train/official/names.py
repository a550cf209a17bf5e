"""Names and shapes of the authors' checkpoint, derived from those of a CLIP in open_clip's naming.

The file is the state dict of their whole training module: ``clip_model`` (the student, whose vision blocks
have q, k and v apart, each with adapters), ``clip_model_frozen`` (an untouched CLIP and the teacher's head)
and two more heads. OpenAI's names of a CLIP, which they use, equal open_clip's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from runtime.errors import CheckpointError
from runtime.names import printable_name
from train.model.lora import PROJECTIONS

STUDENT = "clip_model."
FROZEN = "clip_model_frozen.clip_model_frozen."
VISUAL = "visual."
# Ours to theirs.
HEADS = {"head_image": "img_fc", "head_teacher": "clip_model_frozen.img_frozen_fc", "head_text": "text_fc"}
_ATTENTION = re.compile(r"(visual\.transformer\.resblocks\.\d+\.attn)\.(in|out)_proj(?:_|\.)(weight|bias)")
_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_weight")
_LISTED = 3

Shapes = dict[str, tuple[int, ...]]


def student_names(name: str) -> list[str]:
    """Returns where the student holds a tensor of a CLIP: one name, or three with a third of its rows."""
    match = _ATTENTION.fullmatch(name)
    if match is None:
        return [STUDENT + name]
    attention, side, kind = match.groups()
    parts = [f"{projection}_proj" for projection in PROJECTIONS] if side == "in" else ["proj"]
    return [f"{STUDENT}{attention}.{part}.{kind}" for part in parts]


def adapter_names(block: int, projection: str) -> tuple[str, str]:
    """Returns the names of A, ``[r, D]``, and B, ``[D, r]``, of one projection."""
    stem = f"{STUDENT}visual.transformer.resblocks.{block}.attn.{projection}_proj.w_lora_"
    return f"{stem}A", f"{stem}B"


def block_count(clip_names: Iterable[str]) -> int:
    """Returns the number of vision blocks of a CLIP."""
    return sum(1 for name in clip_names if _BLOCK.fullmatch(name))


def official_shapes(clip: Mapping[str, tuple[int, ...]], rank: int) -> Shapes:
    """Returns every name and shape of the authors' file, in its order.

    Args:
        clip: names and shapes of a whole CLIP, text tower included.
        rank: r of the adapters.
    """
    width = clip["visual.class_embedding"][0]
    embed_dim = clip["visual.proj"][1]
    shapes: Shapes = {}
    for name, shape in clip.items():
        targets = student_names(name)
        for target in targets:
            shapes[target] = (shape[0] // 3, *shape[1:]) if len(targets) == 3 else shape
        match = _BLOCK.fullmatch(name)
        if match:
            for projection in PROJECTIONS:
                down, up = adapter_names(int(match[1]), projection)
                shapes |= {down: (rank, width), up: (width, rank)}
    shapes |= {FROZEN + name: shape for name, shape in clip.items()}
    for head in HEADS.values():
        shapes |= {f"{head}.weight": (1, embed_dim), f"{head}.bias": (1,)}
    return shapes


def rank_of(state: Mapping[str, Tensor]) -> int:
    """Returns r as the file's first adapter has it.

    Raises:
        CheckpointError: there is no adapter, or it is no matrix.
    """
    down = adapter_names(0, PROJECTIONS[0])[0]
    if down not in state or state[down].dim() != 2 or not state[down].shape[0]:
        found = "nothing" if down not in state else f"shape {tuple(state[down].shape)}"
        raise CheckpointError(f"{down}: found {found}, expected an adapter [r, D]; is it a file of stage 2?")
    return int(state[down].shape[0])


def check_table(place: str, state: Mapping[str, Tensor], expected: Shapes, backbone: str) -> None:
    """Compares a file's names and shapes with the whole table.

    Raises:
        CheckpointError: says how many names are missing, unknown or of another shape, and the first of each.
    """
    odd = {
        "missing": sorted(set(expected) - set(state)),
        "unknown": [printable_name(name)[:80] for name in sorted(set(state) - set(expected))],
        "of another shape": [
            f"{name} {list(state[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    }
    if not any(odd.values()):
        return
    listed = "; ".join(
        f"{len(names)} {what} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
        for what, names in odd.items()
        if names
    )
    raise CheckpointError(
        f"{place}: not the authors' checkpoint on {backbone}, which has {len(expected)} tensors: {listed}; "
        "give the --backbone that it was trained on"
    )
