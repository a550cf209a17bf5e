"""A training run from an empty folder to a checkpoint: data, backbone, both stages, validation."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.errors import UsageError
from train.backbone import load_clip
from train.checkpoint import RECORD_NAME, save_checkpoint
from train.config import TrainConfig
from train.data.captions import load_captions
from train.data.layout import find_samples, fingerprint
from train.data.mosaics import MosaicSet
from train.device import require_device
from train.lora import add_lora
from train.metrics import average_precision
from train.model import DgsNet
from train.scores import score_mosaics
from train.stages import train_student, train_teacher_head
from train.text_features import encode_captions

logger = logging.getLogger("dgsnet")


@dataclass(frozen=True)
class RunSummary:
    """What a finished run reports: sizes, and AP on the validation split where there is one."""

    train_samples: int
    val_samples: int
    val_ap: float | None


def fit_run(
    data: Path, run: Path, config: TrainConfig, *, captions: Path, device: str, overwrite: bool
) -> RunSummary:
    """Trains both stages on DATA/train and writes RUN.

    Args:
        data: folder with ``train`` and, where there is one, ``val``.
        run: written; must not hold a checkpoint unless ``overwrite``.
        config: every setting.
        captions: JSON map of captions.
        device: "cpu" or a CUDA device.
        overwrite: replace the checkpoint and the logs that RUN holds.

    Raises:
        UsageError: RUN holds a checkpoint already, or the device or the backbone is unknown.
        MissingDependencyError: the device is absent.
        DataError: the data set or its captions are incomplete.
        GateFailedError: a loss or a trained weight is not finite.
    """
    require_device(device)
    if (run / RECORD_NAME).exists() and not overwrite:
        raise UsageError(f"{run}: holds a checkpoint already; choose another folder or give --overwrite")
    samples = find_samples(data, "train")
    texts = load_captions(captions, samples)
    validation = find_samples(data, "val") if (data / "val").is_dir() else []
    counts = {
        "train": len(samples),
        "val": len(validation),
        "fingerprint": fingerprint(samples),
    }
    clip, backbone = load_clip(config.backbone, config.pretrained, seed=config.seed)
    activation = "QuickGELU" if backbone.quick_gelu else "GELU"
    logger.info("backbone %s, %s weights, %s", backbone.name, backbone.pretrained, activation)
    text_features = encode_captions(clip.to(device), config.backbone, texts, device)
    visual = clip.visual
    del clip  # the text tower leaves memory here
    torch.manual_seed(config.seed)
    add_lora(visual, config.lora)
    model = DgsNet(visual, backbone.embed_dim).to(device).eval()

    # Whatever can fail because of the data fails here, before hours of training.
    train_set = MosaicSet(samples, config.data, seed=config.seed, title="reading train patches")
    val_set = None
    if validation:
        val_set = MosaicSet(validation, config.data, seed=config.seed, title="reading val patches")
    run.mkdir(parents=True, exist_ok=True)
    logs = run / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    with (logs / "steps.jsonl").open("w", encoding="utf-8") as stream:

        def log(record: dict[str, Any]) -> None:
            stream.write(json.dumps(record) + "\n")

        train_teacher_head(model, train_set, config, device, log)
        train_student(model, train_set, text_features, config, device, log)

    save_checkpoint(run, model, config, backbone, counts)  # before validation, which may still fail
    val_ap = None
    if val_set is not None:
        val_ap = average_precision([s.label for s in validation], score_mosaics(model, val_set, device))
    return RunSummary(len(samples), len(validation), val_ap)
