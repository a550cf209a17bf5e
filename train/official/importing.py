"""Which kind of foreign checkpoint a file is, and the run that is made of it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from runtime.errors import CheckpointError, UsageError
from runtime.names import printable_name
from train.config import LoraConfig
from train.official.dgsnet import import_dgsnet
from train.official.names import STUDENT
from train.official.provenance import ImportSummary
from train.official.reading import read_state
from train.official.univfd import import_univfd
from train.record import RECORD_NAME

DEFAULT_ALPHA = LoraConfig().alpha


def import_official(
    file: Path,
    run: Path,
    *,
    backbone: str | None = None,
    alpha: float | None = None,
    scaling: str | None = None,
    pretrained: str | None = None,
    as_mosaic_head: bool = False,
    overwrite: bool = False,
) -> ImportSummary:
    """Writes RUN from DGS-Net's stage-2 checkpoint or from UnivFD's head.

    Args:
        file: the .pth; nothing pickled in it is run.
        run: folder of the run; made where it is missing.
        backbone: open_clip's name; None finds it by shapes, or takes UnivFD's.
        alpha: numerator of the LoRA scale, DGS-Net only; None means 6, as released.
        scaling: "rslora" or "lora", DGS-Net only; None lets a merged file tell, and means "rslora" else.
        pretrained: the CLIP below UnivFD's head; None means "openai".
        as_mosaic_head: accepts UnivFD's head, which was trained on other features than a run feeds it.
        overwrite: replace the checkpoint that RUN holds.

    Raises:
        CheckpointError: the file is unreadable, of no known kind, or not what it should be; see
            ``import_dgsnet`` and ``import_univfd``.
        UsageError: RUN holds a checkpoint, or a setting does not apply to the file.
    """
    if (run / RECORD_NAME).exists() and not overwrite:
        raise UsageError(f"{run}: holds a checkpoint already; choose another folder or give --overwrite")
    kind, state = read_checkpoint_file(file)
    unwanted = {"--alpha": alpha, "--scaling": scaling} if kind == "univfd" else {
        "--pretrained": pretrained, "--as-mosaic-head": as_mosaic_head or None
    }  # fmt: skip
    for flag, value in unwanted.items():
        if value is not None:
            what = "a head without adapters" if kind == "univfd" else "DGS-Net's, which holds its own CLIP"
            raise UsageError(f"{flag}: does not apply, {printable_name(file.name)} is {what}; leave it out")
    if kind == "univfd":
        return import_univfd(
            file, state, run, backbone=backbone, pretrained=pretrained, as_mosaic_head=as_mosaic_head
        )
    chosen = DEFAULT_ALPHA if alpha is None else alpha
    return import_dgsnet(file, state, run, backbone=backbone, alpha=chosen, scaling=scaling)


def read_checkpoint_file(file: Path) -> tuple[str, dict[str, Tensor]]:
    """Returns ("dgs-net" or "univfd", tensors by name).

    Raises:
        CheckpointError: unreadable, or of no known kind; says what was found.
    """
    state = read_state(file)
    if set(state) == {"weight", "bias"}:
        return "univfd", state
    if any(name.startswith(STUDENT) for name in state):
        return "dgs-net", state
    place = printable_name(file.name)
    if "img_frozen_fc.weight" in state and any(name.startswith("clip_model_frozen.") for name in state):
        raise CheckpointError(
            f"{place}: found a stage-1 file, a frozen CLIP with the teacher's head; expected one of stage 2, "
            "which also holds clip_model.* with adapters, img_fc and text_fc"
        )
    found = ", ".join(printable_name(name)[:60] for name in sorted(state)[:3])
    raise CheckpointError(
        f"{place}: found {len(state)} tensors such as {found}, expected DGS-Net's checkpoint (clip_model.*, "
        "clip_model_frozen.*, img_fc.*, text_fc.*) or UnivFD's fc_weights.pth (weight, bias)"
    )
