"""The graphs that are compared: the contract graph, which is shipped, and three others of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.onnxruntime_cpu.rewriting import write_cpu_graph
from export.graph.detector import detector_graph
from export.graph.tower import tower_from_torch
from export.onnx_files import load_model, save_graph, save_model
from train.backbone import load_clip
from train.model import DgsNet

SEED = 7
_ATTENTION_OPSET = 23


@dataclass(frozen=True)
class Graphs:
    """One model in PyTorch and as files.

    Attributes:
        model: in eval mode, random weights of the true shape.
        contract: model.onnx as a bundle holds it.
        cpu: the same, rewritten for ONNX Runtime on a CPU.
        heads: attention heads.
        width: of a token.
    """

    model: DgsNet
    contract: Path
    cpu: Path
    heads: int
    width: int


def write_graphs(backbone: str, folder: Path) -> Graphs:
    """Writes a backbone with random weights, as a bundle holds it and rewritten."""
    clip, info = load_clip(backbone, "random", seed=SEED)
    torch.manual_seed(SEED)
    model = DgsNet(clip.visual, info.embed_dim, heads=("image",)).eval().requires_grad_(False)
    head = model.head_image
    tower = tower_from_torch(model.visual)
    contract, cpu = folder / "model.onnx", folder / "model.cpu.onnx"
    save_graph(detector_graph(tower, head.weight.numpy(), head.bias.numpy()), contract)
    write_cpu_graph(contract, cpu)
    return Graphs(model, contract, cpu, tower.heads, tower.conv.shape[0])


def with_standard_attention(graphs: Graphs) -> Path:
    """Writes the contract graph with each attention as one Attention of opset 23."""
    from onnx import helper

    model = load_model(graphs.contract, weights=False)
    nodes = {node.name: node for node in model.graph.node}
    middle = ("q_scaled", "q_heads", "k_heads", "v_heads", "q_order", "k_order", "v_order")
    dropped = {*middle, "scores", "softmax", "mix", "mix_order"}
    kept = []
    for node in model.graph.node:
        block, _, part = node.name.rpartition("/")
        if not block.endswith("/attention") or part not in {*dropped, "mix_tokens"}:
            kept.append(node)
        elif part == "mix_tokens":
            parts = list(nodes[f"{block}/split"].output)
            heads = {"q_num_heads": graphs.heads, "kv_num_heads": graphs.heads}
            kept.append(helper.make_node("Attention", parts, list(node.output), name=node.name, **heads))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.opset_import[0].version = _ATTENTION_OPSET
    model.ir_version = 10
    path = graphs.contract.with_name("model.attention23.onnx")
    path.write_bytes(model.SerializeToString())
    return path


def with_transformers_optimizer(graphs: Graphs) -> Path:
    """Writes what onnxruntime.transformers makes of the contract graph for a CLIP model."""
    from onnxruntime.transformers import optimizer

    made: Any = optimizer.optimize_model(
        str(graphs.contract), model_type="clip", num_heads=graphs.heads, hidden_size=graphs.width, opt_level=0
    )
    path = graphs.contract.with_name("model.transformers.onnx")
    save_model(made.model, path)
    return path
