"""The main job at true size: random weights of the real shape, both backends that need no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.checkpoint import save_checkpoint
from train.config import TrainConfig
from train.model.backbone import load_clip
from train.model.detector import DgsNet
from train.model.lora import add_lora, lora_state

ROOT = Path(__file__).parent.parent.parent


def untrained_run(folder: Path, backbone: str) -> Path:
    """Writes a run whose adapters are random instead of trained."""
    config = TrainConfig(backbone=backbone, pretrained="random", seed=11)
    clip, info = load_clip(backbone, "random", seed=11)
    add_lora(clip.visual, config.lora)
    for tensor in lora_state(clip.visual).values():
        tensor.add_(torch.randn_like(tensor) * 0.01)
    folder.mkdir()
    save_checkpoint(folder, DgsNet(clip.visual, info.embed_dim), config, info, {"train": 0})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-quickgelu", "ViT-H-14"])
def test_build_engine__true_size(tmp_path: Path, backbone: str) -> None:
    run = untrained_run(tmp_path / "run", backbone)
    done = subprocess.run(
        [sys.executable, "-m", "export", "build-engine", run, "-o", tmp_path / "b",
         "--backend", "onnxruntime,tensorrt-rtx", "--max-batch", "8"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    engine = next(e["file"] for e in manifest["engines"] if e["backend"] == "tensorrt-rtx")
    # Above 100 MB the weights lie beside the graph; FP16 weights and the engine take half their room.
    weights, halves = sizes["model.onnx.data"], sizes["model_fp16.onnx.data"]
    assert sizes["model.onnx"] < 2_000_000
    assert halves / weights == pytest.approx(0.5, abs=0.02)
    assert sizes[engine] / halves == pytest.approx(1.0, abs=0.15)
