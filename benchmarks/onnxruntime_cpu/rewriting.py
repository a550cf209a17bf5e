"""The contract graph rewritten for ONNX Runtime on a CPU, FP32 throughout: a contestant that no bundle holds.

Two rewrites, each of which leaves what is computed as it is:

- Linear layers become Gemm on rows ``[batch * tokens, width]``, which adds the bias inside the product, and
  what lies between them stays in rows.
- The attention's scores become ONNX Runtime's FusedMatMul, which scales and transposes inside the product.

Weights are neither copied nor changed: where they lie beside the graph, both graphs share one data file. What
matches no pattern stays as it is, so any graph of the contract can be the source. Never imports torch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.onnxruntime_cpu.rows import RowsWriter, constant_array
from export.onnx_files import load_model, require_onnx, without_weights
from runtime.errors import EngineBuildError, SpecError
from runtime.files import write_atomically

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CONTRIB_DOMAIN = "com.microsoft"
_HEADS_FIRST = [0, 2, 1, 3]
_HEADS_FIRST_TRANSPOSED = [0, 2, 3, 1]


@dataclass(frozen=True)
class CpuGraphReport:
    """What was rewritten.

    Attributes:
        linear_layers: MatMul and Add pairs that became one Gemm.
        attention_scores: products of queries and keys that became one FusedMatMul.
    """

    linear_layers: int
    attention_scores: int


def write_cpu_graph(source: Path, target: Path) -> CpuGraphReport:
    """Rewrites an FP32 graph for ONNX Runtime on a CPU; equal sources give equal bytes.

    Args:
        source: the FP32 graph; its weights inside, or in a data file beside it.
        target: the graph to write, in the same folder; it refers to the source's data file.

    Raises:
        SpecError: the source is no ONNX graph, or its shapes contradict each other.
        EngineBuildError: nothing in it matches, so that there would be no gain.
        UsageError: the file cannot be written.
    """
    if source.parent.resolve() != target.parent.resolve():
        raise EngineBuildError(f"{target}: expected beside {source}, whose weights it shares")
    model = load_model(source, weights=False)
    report = rewrite_for_cpu(model)
    if not report.linear_layers:
        raise EngineBuildError(f"{source.name}: found no linear layer to rewrite; run it as it is")
    write_atomically(target, model.SerializeToString(deterministic=True))
    return report


def rewrite_for_cpu(model: ModelProto) -> CpuGraphReport:
    """Rewrites a model in place.

    Raises:
        SpecError: its shapes contradict each other.
    """
    onnx = require_onnx()
    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True)
    except onnx.shape_inference.InferenceError as err:
        raise SpecError(f"the graph's shapes contradict each other ({str(err)[:200]})") from err
    scores = _fuse_scores(model)
    writer = RowsWriter(model, inferred)
    linear = writer.rewrite()
    _drop_unused(model)
    if scores and all(opset.domain != CONTRIB_DOMAIN for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB_DOMAIN, 1))
    return CpuGraphReport(linear, scores)


def _fuse_scores(model: ModelProto) -> int:
    """Makes (s q) k^T, with k transposed element by element, a FusedMatMul that reads k as it lies."""
    producers = {name: node for node in model.graph.node for name in node.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(output.name for output in model.graph.output)
    count = 0
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.domain:
            continue
        keys = _own_producer(node.input[1], "Transpose", producers, uses)
        queries = _own_producer(node.input[0], "Transpose", producers, uses)
        if keys is None or _permutation(keys) != _HEADS_FIRST_TRANSPOSED:
            continue
        alpha = 1.0
        if queries is not None and _permutation(queries) == _HEADS_FIRST:
            alpha = _take_scale(model, queries, producers, uses)
        keys.attribute[0].ints[:] = _HEADS_FIRST
        node.op_type, node.domain = "FusedMatMul", CONTRIB_DOMAIN
        helper = require_onnx().helper
        node.attribute.extend([helper.make_attribute("transB", 1), helper.make_attribute("alpha", alpha)])
        count += 1
    return count


def _take_scale(
    model: ModelProto, queries: NodeProto, producers: dict[str, NodeProto], uses: Counter[str]
) -> float:
    """Takes the multiplication by a number out of the path to ``queries`` and returns the number, else 1."""
    reshape = _own_producer(queries.input[0], "Reshape", producers, uses)
    scaled = reshape and _own_producer(reshape.input[0], "Mul", producers, uses)
    if not reshape or not scaled:
        return 1.0
    scale = constant_array(model, scaled.input[1])
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or scale.ndim:
        return 1.0
    reshape.input[0] = scaled.input[0]
    return float(scale)


def _own_producer(
    name: str, op: str, producers: dict[str, NodeProto], uses: Counter[str]
) -> NodeProto | None:
    """Returns the node that makes a tensor if it is of that kind and the tensor is used once."""
    node = producers.get(name)
    return node if node is not None and node.op_type == op and uses[name] == 1 else None


def _permutation(node: NodeProto) -> list[int]:
    return [number for attribute in node.attribute if attribute.name == "perm" for number in attribute.ints]


def _drop_unused(model: ModelProto) -> None:
    needed = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    nodes = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in needed:
            del model.graph.initializer[index]
    # Shapes that an exporter left behind describe tensors that are rows now.
    del model.graph.value_info[:]
