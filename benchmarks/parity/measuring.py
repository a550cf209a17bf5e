"""How much of a parity run is anything but forward passes, on a ViT of real size with random weights."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.build import BundleOptions, build_bundle
from export.checkpoint import CheckpointSource
from export.parity.gate import GateOptions, bundle_gate
from export.parity.outcome import GateReport
from runtime.spec import MOSAIC_SIDE

_SIDE = 512


def parity_overhead(backbone: str, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Returns seconds of a whole run from picture files, of its forward passes, and what is left.

    Everything is timed inside one run. The forward passes are those of PyTorch, unmerged and merged, of the
    FP32 graph and of the engine; the emulation of FP16 is counted apart. From file bytes the engine runs once
    more inside the detector: what that hop takes beyond the engine's own time is decoding and selection, and
    counts as overhead, like the gate's own preprocessing.

    Args:
        backbone: open_clip's name; weights are random.
        count: pictures of 512 x 512, JPEG.
        seed: of pictures and weights.
    """
    with tempfile.TemporaryDirectory(prefix="dgsnet-bench-") as folder:
        root = Path(folder)
        _write_run(root / "run", backbone, seed)
        _write_pictures(root / "pictures", count, seed)
        build_bundle(root / "run", root / "bundle", BundleOptions())
        report = bundle_gate(
            root / "bundle", CheckpointSource(root / "run"), root / "pictures", options=GateOptions()
        )
    return _row(backbone, count, report)


def _row(backbone: str, count: int, report: GateReport) -> dict[str, Any]:
    seconds = {hop.key: hop.seconds for hop in report.waterfall.hops}
    emulated = seconds.pop("fp16-emulated", 0.0)
    engine = sum(value for key, value in seconds.items() if key.startswith("engine"))
    files = sum(seconds.pop(key) for key in list(seconds) if key.startswith("files"))
    forward = sum(seconds.values()) + engine
    total = report.waterfall.seconds - emulated
    largest = [
        hop.previous.logit.largest
        for hop in report.waterfall.hops
        if hop.previous is not None and hop.previous.logit.largest is not None
    ]
    cosines = {
        hop.key: 1 - hop.previous.cosine.smallest
        for hop in report.waterfall.hops
        if hop.previous is not None and hop.previous.cosine is not None
    }
    return {
        "backbone": backbone,
        "pictures": count,
        "total_s": total,
        "forward_s": forward,
        "from_files_s": files,
        "fp16_emulated_s": emulated,
        "overhead": (total - forward) / forward,
        "ms_per_picture": 1000 * total / count,
        "max_abs_logit": max(largest, default=None),
        "median_abs_logit": statistics.median(largest) if largest else None,
        "one_minus_cosine": cosines,
        "passed": report.passed,
    }


def _write_run(run: Path, backbone: str, seed: int) -> None:
    """Writes a run with random base weights and adapters that are not zero."""
    import torch

    from train.checkpoint import save_checkpoint
    from train.config import TrainConfig
    from train.model.backbone import load_clip
    from train.model.lora import lora_parameters
    from train.recipes import build_model

    config = TrainConfig(backbone=backbone, pretrained="random", seed=seed)
    clip, info = load_clip(backbone, "random", seed=seed)
    model = build_model(clip.visual, info.embed_dim, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lora_parameters(model.visual):
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
        model.head_image.weight.mul_(20)  # logits as far apart as a trained head's
    run.mkdir(parents=True)
    save_checkpoint(run, model, config, info, {})


def _write_pictures(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(_picture(draw)).save(folder / f"{index:05d}.jpg", quality=90)


def _picture(draw: np.random.Generator) -> NDArray[np.uint8]:
    """Returns smooth content with noise of varying strength, 512 x 512."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE] / MOSAIC_SIDE
    smooth = 127 + 60 * np.sin(draw.uniform(2, 9) * rows) * np.cos(draw.uniform(2, 9) * columns)
    noise = draw.normal(0, 1, (_SIDE, _SIDE, 3)) * (20 * rows)[..., None]
    return np.asarray(np.clip(smooth[..., None] + noise, 0, 255), dtype=np.uint8)
