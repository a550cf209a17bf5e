"""What is measured, each in a process of its own: the main job, and the simplest export by torch's tracer."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from export.steps.clock import Phase, PhaseClock
from runtime.errors import MissingDependencyError


def write_untrained_run(folder: Path, backbone: str) -> None:
    """Writes a run of a backbone with random weights and adapters: speed does not depend on their values."""
    import torch

    from train.checkpoint import save_checkpoint
    from train.config import TrainConfig
    from train.model.backbone import load_clip
    from train.model.detector import DgsNet
    from train.model.lora import add_lora, lora_state

    config = TrainConfig(backbone=backbone, pretrained="random", seed=11)
    clip, info = load_clip(backbone, "random", seed=11)
    add_lora(clip.visual, config.lora)
    for tensor in lora_state(clip.visual).values():
        tensor.add_(torch.randn_like(tensor) * 0.01)
    folder.mkdir()
    save_checkpoint(folder, DgsNet(clip.visual, info.embed_dim), config, info, {"train": 0})


def ours(run: Path, backends: tuple[str, ...]) -> dict[str, Any]:
    """Builds a bundle as ``build-engine`` does and returns its phases, file sizes and CPU seconds."""
    from export.build import BundleOptions, build_bundle

    with tempfile.TemporaryDirectory(dir=run.parent) as folder:
        report = build_bundle(run, Path(folder) / "bundle", BundleOptions(backends=backends))
        files = {
            p.relative_to(report.bundle).as_posix(): p.stat().st_size for p in report.bundle.rglob("*.*")
        }
    return {"phases": list(report.phases), "files": files, "cpu_seconds": _cpu_seconds()}


def traced(run: Path) -> dict[str, Any]:
    """Exports the FP32 graph alone with ``torch.onnx.export``, adapters merged, weights beside the graph."""
    clock = PhaseClock()
    with clock.phase("read the checkpoint"):
        try:
            import onnxscript  # noqa: F401 (the tracer needs it and would say so late)
        except ImportError as err:
            raise MissingDependencyError(f"torch's tracer needs onnxscript ({err}); --no-tracer") from err
        import torch

        from train.checkpoint import load_checkpoint
        from train.model.lora import merge_lora

        model = load_checkpoint(run).model
    with clock.phase("torch.onnx.export"), tempfile.TemporaryDirectory(dir=run.parent) as folder:
        merge_lora(model.visual)
        torch.onnx.export(
            model,
            (torch.zeros(2, 224, 224, 3, dtype=torch.uint8),),
            Path(folder) / "model.onnx",
            input_names=["images"],
            output_names=["logit", "embedding"],
            dynamic_shapes=({0: "batch"},),
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    return {"phases": clock.phases, "files": {}, "cpu_seconds": _cpu_seconds()}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def phase_json(phase: Phase, peak_bytes: int) -> dict[str, Any]:
    """Returns one phase as the report stores it."""
    return {
        "name": phase.name,
        "seconds": round(phase.seconds, 2),
        "numeric": phase.is_numeric,
        "peak_bytes": peak_bytes,
    }
