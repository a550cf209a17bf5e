"""A hand-made ONNX graph that follows the contract: a small ViT with the names that the policy keys on."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH = 64
HEADS = 2
EMBED_DIM = 32
TOKENS = 49


class VitGraph:
    """Collects the nodes and weights of a graph, all named by what they do."""

    def __init__(self, seed: int, width: int, heads: int) -> None:
        self.width = width
        self.heads = heads
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self._random = np.random.RandomState(seed)

    def weight(self, name: str, *shape: int, scale: float = 0.08) -> str:
        self.weights[name] = (self._random.standard_normal(shape) * scale).astype(np.float32)
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.weights[name] = np.asarray(value, dtype=dtype)
        return name

    def add(self, op: str, name: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output or name + ":0"], name=name, **attributes))
        return output or name + ":0"

    def layer_norm(self, name: str, data: str) -> str:
        scale, bias = (
            self.constant(name + ".scale", np.ones(self.width)),
            self.weight(name + ".bias", self.width),
        )
        return self.add("LayerNormalization", name, [data, scale, bias], axis=-1, epsilon=1e-5)

    def linear(self, name: str, data: str, rows: int, columns: int) -> str:
        product = self.add("MatMul", name, [data, self.weight(name + ".weight", rows, columns)])
        return self.add("Add", name + "_bias", [product, self.weight(name + ".bias", columns)])


def vit_model(*, blocks: int = 2, seed: int = 0, width: int = WIDTH, heads: int = HEADS) -> Any:
    """Returns a ModelProto, opset 18, FP32, batch dynamic, with random weights."""
    from onnx import TensorProto, helper, numpy_helper

    graph = VitGraph(seed, width, heads)
    data = graph.add("Cast", "preprocess/cast", ["images"], to=TensorProto.FLOAT)
    data = graph.add("Div", "preprocess/scale", [data, graph.constant("full", 255.0)])
    data = graph.add("Sub", "preprocess/mean", [data, graph.constant("mean", [0.485, 0.456, 0.406])])
    data = graph.add("Div", "preprocess/std", [data, graph.constant("std", [0.229, 0.224, 0.225])])
    data = graph.add("Transpose", "preprocess/planes", [data], perm=[0, 3, 1, 2])
    kernel = graph.weight("patch.weight", width, 3, 32, 32, scale=0.02)
    data = graph.add("Conv", "patch/conv", [data, kernel], strides=[32, 32])
    data = graph.add("Reshape", "patch/tokens", [data, graph.constant("flat", [0, width, TOKENS], np.int64)])
    data = graph.add("Transpose", "patch/order", [data], perm=[0, 2, 1])
    for k in range(blocks):
        data = _block(graph, f"block_{k}", data)
    data = graph.add("ReduceMean", "pool", [data, graph.constant("axis_1", [1], np.int64)], keepdims=0)
    data = graph.add(
        "MatMul", "projection/linear", [data, graph.weight("projection.weight", width, EMBED_DIM)]
    )
    length = graph.add("ReduceL2", "projection/length", [data, graph.constant("last", [-1], np.int64)])
    embedding = graph.add("Div", "projection/unit", [data, length], "embedding")
    logit = graph.add(
        "MatMul", "head/linear", [embedding, graph.weight("head.weight", EMBED_DIM, 1, scale=2.0)]
    )
    graph.add("Squeeze", "head/squeeze", [logit, graph.constant("axis_last", [1], np.int64)], "logit")
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 224, 224, 3])]
    outputs = [
        helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", EMBED_DIM]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in graph.weights.items()]
    body = helper.make_graph(graph.nodes, "detector", inputs, outputs, weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _block(graph: VitGraph, name: str, data: str) -> str:
    width, heads = graph.width, graph.heads
    side = width // heads
    normal = graph.layer_norm(f"{name}/ln_1", data)
    split = graph.constant(f"{name}.split", [0, TOKENS, heads, side], np.int64)
    parts = []
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        value = graph.linear(f"{name}/{part}", normal, width, width)
        value = graph.add("Reshape", f"{name}/{part}_heads", [value, split])
        parts.append(graph.add("Transpose", f"{name}/{part}_order", [value], perm=order))
    query = graph.add("Mul", f"{name}/q_scaled", [parts[0], graph.constant(f"{name}.scale", side**-0.5)])
    scores = graph.add("MatMul", f"{name}/scores", [query, parts[1]])
    weights = graph.add("Softmax", f"{name}/softmax", [scores], axis=-1)
    mixed = graph.add("MatMul", f"{name}/mixed", [weights, parts[2]])
    mixed = graph.add("Transpose", f"{name}/mixed_order", [mixed], perm=[0, 2, 1, 3])
    join = graph.constant(f"{name}.join", [0, TOKENS, width], np.int64)
    mixed = graph.add("Reshape", f"{name}/mixed_join", [mixed, join])
    data = graph.add("Add", f"{name}/residual_1", [data, graph.linear(f"{name}/out", mixed, width, width)])
    hidden = graph.linear(f"{name}/up", graph.layer_norm(f"{name}/ln_2", data), width, 4 * width)
    gate = graph.add("Mul", f"{name}/gate_in", [hidden, graph.constant(f"{name}.gate", 1.702)])
    gate = graph.add("Sigmoid", f"{name}/gate", [gate])
    hidden = graph.add("Mul", f"{name}/gelu", [hidden, gate])
    return graph.add(
        "Add", f"{name}/residual_2", [data, graph.linear(f"{name}/down", hidden, 4 * width, width)]
    )


def mosaics(count: int, seed: int = 0) -> np.ndarray:
    """Returns uint8 [count, 224, 224, 3] noise."""
    return np.random.RandomState(seed).randint(0, 256, (count, 224, 224, 3)).astype(np.uint8)
