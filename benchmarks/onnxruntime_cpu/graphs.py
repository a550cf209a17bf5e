"""The graphs that are compared: the contract graph, which is shipped, and three others of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.onnxruntime_cpu.rewriting import write_cpu_graph
from export.onnx_files import load_model, save_graph, save_model

SEED = 7
_ATTENTION_OPSET = 23


@dataclass(frozen=True)
class Graphs:
    """One model with random weights of the true shape, as files.

    Attributes:
        backbone: open_clip's name.
        contract: model.onnx as a bundle holds it.
        heads: attention heads.
        width: of a token.
        embed_dim: width D of the embedding.
    """

    backbone: str
    contract: Path
    heads: int
    width: int
    embed_dim: int

    @property
    def weights(self) -> Path:
        """Returns the state of the PyTorch model."""
        return self.contract.with_name("weights.pt")

    @property
    def cpu(self) -> Path:
        """Returns the contract graph rewritten for ONNX Runtime on a CPU."""
        return self.contract.with_name("model.cpu.onnx")


def write_graphs(backbone: str, folder: Path) -> Graphs:
    """Writes a backbone with random weights: for PyTorch, as a bundle holds it, and rewritten."""
    import torch

    from export.graph.detector import detector_graph
    from export.graph.tower import tower_from_torch
    from train.model.backbone import load_clip
    from train.model.detector import DgsNet

    clip, info = load_clip(backbone, "random", seed=SEED)
    torch.manual_seed(SEED)
    model = DgsNet(clip.visual, info.embed_dim, heads=("image",)).eval().requires_grad_(False)
    tower = tower_from_torch(model.visual)
    graphs = Graphs(backbone, folder / "model.onnx", tower.heads, tower.conv.shape[0], info.embed_dim)
    head = model.head_image
    save_graph(detector_graph(tower, head.weight.numpy(), head.bias.numpy()), graphs.contract)
    torch.save(model.state_dict(), graphs.weights)
    write_cpu_graph(graphs.contract, graphs.cpu)
    return graphs


def torch_model(graphs: Graphs) -> Any:
    """Returns the model in PyTorch, in eval mode."""
    import torch

    from train.model.backbone import empty_clip
    from train.model.detector import DgsNet

    clip, _ = empty_clip(graphs.backbone)
    model = DgsNet(clip.visual, graphs.embed_dim, heads=("image",))
    model.load_state_dict(torch.load(graphs.weights, weights_only=True), assign=True)
    return model.eval().requires_grad_(False)


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
    path = graphs.contract.with_name("model.transformers.onnx")
    if path.exists():
        return path
    from runtime.backends.onnx_session import import_onnxruntime

    import_onnxruntime()
    from onnxruntime.transformers import optimizer

    made: Any = optimizer.optimize_model(
        str(graphs.contract), model_type="clip", num_heads=graphs.heads, hidden_size=graphs.width, opt_level=0
    )
    save_model(made.model, path)
    return path
