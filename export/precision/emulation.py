"""FP16 arithmetic on a CPU: the FP16 graph rewritten so that every operator rounds its result to FP16.

ONNX Runtime has no FP16 kernels for most operators on a CPU. It computes an FP16 graph in FP32 with casts at
the ends and leaves out the casts in between, so that 450,000 passes through. Here each operator that the FP16
graph computes in FP16 gets FP32 inputs that hold FP16 values, and an explicit pair of casts after it, to FP16
and back. Those are part of the model, and ONNX Runtime keeps them at every optimisation level; a session
proves it on a probe before it runs (``export.precision.graph_session``).

What is modelled: weights rounded to FP16; FP32 inside an operator and one rounding of its result, to nearest
even, with subnormals, and infinity from 65520 on. That is what tensor cores do with a MatMul or Conv (exact
products, sums in FP32), what attention kernels do with a Softmax, and how LayerNormalization takes its
statistics. Nodes that stay FP32 in the FP16 graph stay untouched.

What is not: the order of sums; kernels that keep a value FP32 over several operators, such as MatMul with its
bias or a fused attention, which round less often and can escape an overflow that is seen here; kernels that
sum in FP16; and flushing of subnormals to zero. A device may therefore be a little better or worse than the
emulation in its last bits, and a value that overflows here overflows there unless fusion hides it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.onnx_files import inferred_types, require_onnx
from runtime.errors import EngineBuildError, SpecError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# These give on what they got, bit by bit: a rounding after them would change nothing.
MOVING_OPS = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
# Their FP16 result comes from an attribute, which stays as it is; only what reads it is FP32.
_NATIVE_OPS = frozenset({"Cast", "Constant", "ConstantOfShape"})
_EXACT, _HALF = "_exact", "_half"


@dataclass(frozen=True)
class ComputedTensor:
    """A floating-point tensor that a node computes, as opposed to one that it only moves.

    Attributes:
        name: of the tensor.
        node: name of the node that gives it.
        source: (node, number of the output) that first computed the value: for a Cast between floating-point
            types those of what it casts. It names the same value in the FP32 graph and in the FP16 graph.
        readers: names of the nodes that read it, directly or after it was moved.
        is_half: whether it holds FP16 values.
    """

    name: str
    node: str
    source: tuple[str, int]
    readers: tuple[str, ...]
    is_half: bool


def emulated_from_fp16(model: ModelProto) -> None:
    """Rewrites an FP16 graph in place to the FP32 graph that emulates it; tensor names stay.

    Weights may be left in their data file: they stay FP16 there and are cast when a session opens.

    Args:
        model: an FP16 graph as ``fp16_from_fp32`` writes it.

    Raises:
        SpecError: nothing in the graph is FP16.
        EngineBuildError: the graph has functions or control flow, or its types do not fit together.
    """
    onnx = require_onnx()
    _require_plain(model)
    graph, half = model.graph, onnx.TensorProto.FLOAT16
    halves = {name for name, kind in inferred_types(model).items() if kind == half}
    if not halves:
        raise SpecError("found no FP16 in the graph, expected an FP16 graph: model_fp16.onnx")
    nodes: list[NodeProto] = []
    for tensor in graph.initializer:
        if tensor.name in halves:
            nodes.append(_cast(tensor.name + _HALF, tensor.name, onnx.TensorProto.FLOAT))
            tensor.name += _HALF
    for node in graph.node:
        nodes.append(node)
        if node.op_type in MOVING_OPS:
            continue
        for k, name in enumerate(node.output):
            if name not in halves:
                continue
            if node.op_type in _NATIVE_OPS:
                node.output[k] = name + _HALF
            else:
                node.output[k] = name + _EXACT
                nodes.append(_cast(name + _EXACT, name + _HALF, half))
            nodes.append(_cast(name + _HALF, name, onnx.TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def computed_tensors(model: ModelProto) -> list[ComputedTensor]:
    """Returns the floating-point tensors that an FP32 or FP16 graph computes, in its order.

    Raises:
        EngineBuildError: the graph has functions or control flow, or its types do not fit together.
    """
    TensorProto = require_onnx().TensorProto
    _require_plain(model)
    types = inferred_types(model)
    floats = {k for k, kind in types.items() if kind in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    readers = _readers(model)
    sources: dict[str, tuple[str, int]] = {}
    found = []
    for node in model.graph.node:
        given = next((sources[name] for name in node.input if name in sources and name in floats), None)
        passes_on = node.op_type == "Cast" or node.op_type in MOVING_OPS
        for k, name in enumerate(node.output):
            if name not in floats:
                continue
            sources[name] = given if passes_on and given is not None else (node.name, k)
            if node.op_type not in MOVING_OPS:
                is_half = types[name] == TensorProto.FLOAT16
                found.append(
                    ComputedTensor(name, node.name, sources[name], tuple(sorted(readers[name])), is_half)
                )
    return found


def _readers(model: ModelProto) -> defaultdict[str, set[str]]:
    """Returns the names of the nodes that read each tensor, a moved one's readers included."""
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for node in reversed(model.graph.node):
        through = {node.name}
        if node.op_type in MOVING_OPS:
            through.update(name for output in node.output for name in readers[output])
        for name in node.input:
            readers[name] |= through
    return readers


def _require_plain(model: ModelProto) -> None:
    if model.functions or any(a.g.node or a.graphs for node in model.graph.node for a in node.attribute):
        raise EngineBuildError("the graph has functions or control flow, expected plain nodes; inline them")


def _cast(name: str, result: str, kind: int) -> NodeProto:
    from onnx import helper

    return helper.make_node("Cast", [name], [result], name=f"emulation/{result}", to=kind)
