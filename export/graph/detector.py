"""The detector's FP32 ONNX graph: scaling, vision transformer, projection and head.

Attention is written in the explicit form that TensorRT fuses (packed projection, Q scaled before the first
product, Softmax on the last axis); only the batch is dynamic, and no node computes a shape. Node names say
the part: preprocess/, stem/, block_<n>/, pool/, projection/, head/.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from export.graph.builder import GraphBuilder, WrittenGraph
from export.graph.tower import Block, Norm, Tower
from runtime.errors import UsageError
from runtime.spec import (
    BATCH_AXIS,
    EMBEDDING_NAME,
    IMAGE_MEAN,
    IMAGE_STD,
    INPUT_NAME,
    LOGIT_NAME,
    MOSAIC_SIDE,
)

OPSET = 18
# The oldest IR that carries each opset, so that old parsers (TensorRT 10.3 on JetPack 6) read the file. They
# end at opset 20, and LayerNormalization begins with 17.
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9}


def detector_graph(
    tower: Tower, head_weight: NDArray[np.float32], head_bias: NDArray[np.float32], *, opset: int = OPSET
) -> WrittenGraph:
    """Returns the graph of the contract: uint8 mosaics in, float32 logit and embedding out.

    Args:
        tower: the vision transformer, adapters merged; the graph refers to its arrays.
        head_weight: float32 ``[1, E]``.
        head_bias: float32 ``[1]``.
        opset: version of the standard operators; the nodes are the same in each.

    Raises:
        UsageError: an opset that not every supported parser reads, or without LayerNormalization.
    """
    from onnx import TensorProto, helper

    if opset not in IR_VERSIONS:
        raise UsageError(f"opset: found {opset}, expected one of {', '.join(map(str, IR_VERSIONS))}")
    graph = GraphBuilder()
    embed_dim = tower.projection.shape[1]
    x = _preprocess(graph)
    x = _stem(graph, x, tower)
    for index, block in enumerate(tower.blocks):
        x = _block(graph, f"block_{index}", x, block, tower)
    x = graph.add("pool/class_token", "Gather", [x, graph.constant("pool/index", np.array(0))], axis=1)
    x = _norm(graph, "pool/ln_post", x, tower.ln_post)
    projection = graph.constant("projection/weight", tower.projection)
    x = graph.add("projection/matmul", "MatMul", [x, projection], output=EMBEDDING_NAME)
    x = graph.linear("head", x, head_weight, head_bias)
    axis = graph.constant("head/axis", np.array([1]))
    graph.add("head/squeeze", "Squeeze", [x, axis], output=LOGIT_NAME)

    images = [BATCH_AXIS, MOSAIC_SIDE, MOSAIC_SIDE, 3]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "dgsnet",
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, images)],
            [
                helper.make_tensor_value_info(LOGIT_NAME, TensorProto.FLOAT, [BATCH_AXIS]),
                helper.make_tensor_value_info(EMBEDDING_NAME, TensorProto.FLOAT, [BATCH_AXIS, embed_dim]),
            ],
        ),
        producer_name="dgsnet",
        ir_version=IR_VERSIONS[opset],
        opset_imports=[helper.make_opsetid("", opset)],
    )
    return WrittenGraph(model, graph.weights)


def _preprocess(graph: GraphBuilder) -> str:
    from onnx import TensorProto

    def channels(name: str, values: tuple[float, ...]) -> str:
        return graph.constant(name, np.array(values, dtype=np.float32).reshape(1, 3, 1, 1))

    # TensorRT takes a uint8 input only if a cast to float is the very first operator.
    x = graph.add("preprocess/cast", "Cast", [INPUT_NAME], to=TensorProto.FLOAT)
    x = graph.add("preprocess/to_nchw", "Transpose", [x], perm=[0, 3, 1, 2])
    x = graph.add("preprocess/unit", "Div", [x, graph.constant("preprocess/255", np.array(255, np.float32))])
    x = graph.add("preprocess/centre", "Sub", [x, channels("preprocess/mean", IMAGE_MEAN)])
    return graph.add("preprocess/scale", "Div", [x, channels("preprocess/std", IMAGE_STD)])


def _stem(graph: GraphBuilder, x: str, tower: Tower) -> str:
    width, _, patch, _ = tower.conv.shape
    count = tower.tokens.shape[0]
    conv = graph.constant("stem/conv/weight", tower.conv)
    x = graph.add("stem/conv", "Conv", [x, conv], kernel_shape=[patch, patch], strides=[patch, patch])
    x = graph.add(
        "stem/flatten", "Reshape", [x, graph.constant("stem/shape", np.array([0, width, count - 1]))]
    )
    x = graph.add("stem/to_tokens", "Transpose", [x], perm=[0, 2, 1])
    # One row of zeros in front is where the class token goes; its embedding is in the positions' row 0.
    pads = graph.constant("stem/pads", np.array([0, 1, 0, 0, 0, 0]))
    x = graph.add("stem/class_token", "Pad", [x, pads])
    x = graph.add("stem/position", "Add", [x, graph.constant("stem/tokens", tower.tokens[None])])
    return x if tower.ln_pre is None else _norm(graph, "stem/ln_pre", x, tower.ln_pre)


def _block(graph: GraphBuilder, name: str, x: str, block: Block, tower: Tower) -> str:
    y = _norm(graph, f"{name}/ln_1", x, block.ln_1)
    y = _attention(graph, f"{name}/attention", y, block, tower)
    x = _residual(graph, f"{name}/attention", x, y, block.scale_1)
    y = _norm(graph, f"{name}/ln_2", x, block.ln_2)
    y = graph.linear(f"{name}/mlp/fc", y, block.fc.weight, block.fc.bias)
    y = _activation(graph, f"{name}/mlp/act", y, tower.activation)
    y = graph.linear(f"{name}/mlp/proj", y, block.proj.weight, block.proj.bias)
    return _residual(graph, f"{name}/mlp", x, y, block.scale_2)


def _attention(graph: GraphBuilder, name: str, x: str, block: Block, tower: Tower) -> str:
    width, tokens = tower.conv.shape[0], tower.tokens.shape[0]
    head = width // tower.heads
    packed = graph.linear(f"{name}/qkv", x, block.in_proj.weight, block.in_proj.bias)
    parts = [f"{name}/{part}" for part in ("q", "k", "v")]
    sizes = graph.constant(f"{name}/sizes", np.array([width] * 3))
    q, k, v = graph.add_many(f"{name}/split", "Split", [packed, sizes], parts, axis=-1)
    # Scaled before the product: the scores then stay inside FP16's range.
    scale = graph.constant(f"{name}/scale", np.array(1 / math.sqrt(head), dtype=np.float32))
    q = graph.add(f"{name}/q_scaled", "Mul", [q, scale])
    shape = graph.constant(f"{name}/head_shape", np.array([0, tokens, tower.heads, head]))

    def heads(part: str, value: str, perm: list[int]) -> str:
        split = graph.add(f"{name}/{part}_heads", "Reshape", [value, shape])
        return graph.add(f"{name}/{part}_order", "Transpose", [split], perm=perm)

    scores = graph.add(f"{name}/scores", "MatMul", [heads("q", q, [0, 2, 1, 3]), heads("k", k, [0, 2, 3, 1])])
    weights = graph.add(f"{name}/softmax", "Softmax", [scores], axis=-1)
    mixed = graph.add(f"{name}/mix", "MatMul", [weights, heads("v", v, [0, 2, 1, 3])])
    mixed = graph.add(f"{name}/mix_order", "Transpose", [mixed], perm=[0, 2, 1, 3])
    shape_back = graph.constant(f"{name}/token_shape", np.array([0, tokens, width]))
    mixed = graph.add(f"{name}/mix_tokens", "Reshape", [mixed, shape_back])
    return graph.linear(f"{name}/out", mixed, block.out_proj.weight, block.out_proj.bias)


def _activation(graph: GraphBuilder, name: str, x: str, kind: str) -> str:
    def number(suffix: str, value: float) -> str:
        return graph.constant(f"{name}/{suffix}", np.array(value, dtype=np.float32))

    if kind == "QuickGELU":
        gate = graph.add(f"{name}/slope", "Mul", [x, number("1.702", 1.702)])
        gate = graph.add(f"{name}/sigmoid", "Sigmoid", [gate])
        return graph.add(f"{name}/gate", "Mul", [x, gate])
    # x (1 + erf(x / sqrt 2)) / 2: opset 18 has no Gelu, and this order of nodes is the one that engines fuse.
    gate = graph.add(f"{name}/div", "Div", [x, number("sqrt2", math.sqrt(2))])
    gate = graph.add(f"{name}/erf", "Erf", [gate])
    gate = graph.add(f"{name}/add", "Add", [gate, number("one", 1.0)])
    gate = graph.add(f"{name}/mul", "Mul", [x, gate])
    return graph.add(f"{name}/half", "Mul", [gate, number("0.5", 0.5)])


def _residual(graph: GraphBuilder, name: str, x: str, y: str, scale: NDArray[np.float32] | None) -> str:
    if scale is not None:
        y = graph.add(f"{name}/layer_scale", "Mul", [y, graph.constant(f"{name}/gamma", scale)])
    return graph.add(f"{name}/residual", "Add", [x, y])


def _norm(graph: GraphBuilder, name: str, x: str, norm: Norm) -> str:
    return graph.layer_norm(name, x, norm.weight, norm.bias, norm.eps)
