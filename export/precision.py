"""The FP16 graph of a detector: which nodes stay FP32, how the rest is typed, and proof that it was.

Precision lives in the graph, because strongly typed TensorRT builds exactly what the graph says. The
conversion is written here rather than taken from onnxconverter-common 1.16: on a contract graph that one
turns both outputs into FP16, rounds values to FP16 between two neighbouring FP32 nodes and gives one MatMul
inputs of two types, which onnx's full check refuses.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.onnx_checks import check_contract, check_structure
from export.onnx_files import inferred_types, load_model, save_model
from runtime.errors import EngineBuildError, GateFailedError, UsageError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

FP16_LARGEST = 65504.0
WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
# ONNX gives these no FP16 form for all of their float inputs.
_FP32_OPS = ("Range", "Resize")
_SUFFIX = "_fp16"


@dataclass(frozen=True)
class PrecisionPolicy:
    """Which nodes of the FP16 graph compute in FP32.

    LayerNormalization needs no entry: it stays one node, whose ``stash_type`` keeps its statistics FP32.

    Attributes:
        fp32_nodes: shell patterns of node names; by default the scaling of pixels, the final embedding with
            its normalisation, and the classifier.
        min_fp16_share: least share, 0..1, of MatMul, Gemm and Conv nodes outside ``fp32_nodes`` that must
            come out as FP16.
    """

    fp32_nodes: tuple[str, ...] = ("preprocess/*", "projection/*", "head/*")
    min_fp16_share: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 < self.min_fp16_share <= 1.0:
            raise UsageError(
                f"min_fp16_share: found {self.min_fp16_share}, expected a share above 0, at most 1"
            )

    def keeps_fp32(self, node_name: str) -> bool:
        """Tells whether a node of this name computes in FP32."""
        return any(fnmatch.fnmatchcase(node_name, pattern) for pattern in self.fp32_nodes)

    def share(self, outputs: Sequence[tuple[str, bool]]) -> float:
        """Returns the FP16 share of (node name, is FP16) pairs without those kept FP32; 0 if none is left."""
        asked = [is_half for name, is_half in outputs if not self.keeps_fp32(name)]
        return sum(asked) / len(asked) if asked else 0.0

    def require(self, share: float, what: str) -> None:
        """Refuses a graph that computes less in FP16 than the policy asks for.

        Raises:
            GateFailedError: the share is below ``min_fp16_share``.
        """
        if share < self.min_fp16_share:
            raise GateFailedError(
                f"{what}: found {share:.1%} of MatMul, Gemm and Conv outputs in FP16, expected at least "
                f"{self.min_fp16_share:.1%}; convert model.onnx again, or name the nodes that may stay FP32"
            )


@dataclass(frozen=True)
class PrecisionReport:
    """What the conversion did, read from the graph that it wrote.

    Attributes:
        fp16_share: of the weighted nodes that the policy does not keep FP32.
        weighted_nodes: MatMul, Gemm and Conv nodes, all of them.
        weighted_fp32: those of them whose output is FP32.
        fp32_nodes: nodes of any kind that the policy kept.
        casts: Cast nodes in the graph, those of the source included.
        flushed_weights: numbers that were not 0 in FP32 and are in FP16.
    """

    fp16_share: float
    weighted_nodes: int
    weighted_fp32: int
    fp32_nodes: int
    casts: int
    flushed_weights: int


def fp16_from_fp32(source: Path, target: Path, policy: PrecisionPolicy) -> PrecisionReport:
    """Writes the FP16 form of an FP32 contract graph: same names, same input, float32 outputs.

    Args:
        source: an ONNX file that follows the contract, weights inside or beside it.
        target: where the FP16 graph goes; written only if it passes the policy.
        policy: what stays FP32, and how much must not.

    Raises:
        SpecError: the source does not follow the contract, or a graph is not valid ONNX.
        UsageError: a pattern of the policy matches no node.
        EngineBuildError: a weight is NaN, infinite or above 65504 in magnitude, or the graph has parts
            that this conversion does not know.
        GateFailedError: too little of the graph came out as FP16.
    """
    model = load_model(source)
    check_contract(model)
    kept = _kept_nodes(model, policy)
    conversion = _Conversion(inferred_types(model), kept)
    conversion.run(model)
    types = inferred_types(model)
    from onnx import TensorProto

    weighted = [
        (node.name, types[node.output[0]] == TensorProto.FLOAT16)
        for node in model.graph.node
        if node.op_type in WEIGHTED_OPS
    ]
    share = policy.share(weighted)
    policy.require(share, target.name)
    save_model(model, target)
    check_contract(target)
    check_structure(target)
    return PrecisionReport(
        fp16_share=share,
        weighted_nodes=len(weighted),
        weighted_fp32=sum(not is_half for _name, is_half in weighted),
        fp32_nodes=len(kept),
        casts=sum(node.op_type == "Cast" for node in model.graph.node),
        flushed_weights=conversion.flushed,
    )


def _kept_nodes(model: ModelProto, policy: PrecisionPolicy) -> set[str]:
    names = [node.name for node in model.graph.node]
    if "" in names or len(set(names)) < len(names):
        raise EngineBuildError(
            "the FP32 graph has nodes without a name or with one name; name each node once"
        )
    for pattern in policy.fp32_nodes:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"precision policy: {pattern!r} matches none of {len(names)} nodes (the first is "
                f"{names[0]!r}); correct the pattern, or what should stay FP32 would not"
            )
    if model.functions or any(a.g.node or a.graphs for node in model.graph.node for a in node.attribute):
        raise EngineBuildError(
            "the FP32 graph has functions or control flow, expected plain nodes; inline them"
        )
    return {name for name in names if policy.keeps_fp32(name)}


class _Conversion:
    """Retypes one graph in place. ``types`` maps tensor names to the element types of the FP32 graph."""

    def __init__(self, types: dict[str, int], kept: set[str]) -> None:
        from onnx import TensorProto

        self.flushed = 0
        self._float, self._half = TensorProto.FLOAT, TensorProto.FLOAT16
        self._types = types
        self._kept = kept
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._used: dict[str, set[int]] = {}
        self._is_half: set[str] = set()
        self._casts: dict[tuple[str, int], str] = {}

    def run(self, model: ModelProto) -> None:
        graph = model.graph
        self._weights = {
            tensor.name: tensor for tensor in graph.initializer if tensor.data_type == self._float
        }
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            self._convert_node(node, outputs)
        weights = list(self._converted_weights(graph.initializer))
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(weights)

    def _convert_node(self, node: NodeProto, outputs: set[str]) -> None:
        keeps = node.name in self._kept or node.op_type in _FP32_OPS
        wanted = self._float if keeps else self._half
        for k, name in enumerate(node.input):
            if self._types.get(name) == self._float:
                native = self._half if name in self._is_half else self._float
                node.input[k] = self._typed(name, native if node.op_type == "Cast" else wanted)
        if not keeps:
            self._convert_attributes(node)
        self._nodes.append(node)
        for k, name in enumerate(node.output):
            if self._types.get(name) == self._float and not keeps:
                self._is_half.add(name)
                if name in outputs:
                    node.output[k] = name + _SUFFIX
                    self._cast(name + _SUFFIX, name, self._float)

    def _typed(self, name: str, wanted: int) -> str:
        """Returns the name under which a float tensor can be read as ``wanted``."""
        if name in self._weights:
            self._used.setdefault(name, set()).add(wanted)
            return name + _SUFFIX if wanted == self._half else name
        is_output_copy = (name + _SUFFIX, self._float) in self._casts
        if (wanted == self._half) == (name in self._is_half):
            return name + _SUFFIX if is_output_copy else name
        if is_output_copy:
            return name
        made = self._casts.get((name, wanted))
        return made or self._cast(name, f"{name}_{'fp32' if wanted == self._float else 'fp16'}", wanted)

    def _cast(self, name: str, result: str, wanted: int) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [name], [result], name=f"cast/{result}", to=wanted))
        self._casts[name, wanted] = result
        return result

    def _convert_attributes(self, node: NodeProto) -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast":
                if attribute.name == "to" and attribute.i == self._float:
                    attribute.i = self._half
            elif attribute.t.data_type == self._float:
                attribute.t.CopyFrom(self._half_tensor(attribute.t, node.name, attribute.t.name))
            elif attribute.name in ("value_float", "value_floats", "dtype"):
                raise EngineBuildError(f"node {node.name}: attribute {attribute.name} has no FP16 form here")

    def _converted_weights(self, tensors: Any) -> Any:
        for tensor in tensors:
            uses = self._used.get(tensor.name, set())
            if tensor.name not in self._weights or self._float in uses:
                _check_finite(_array(tensor), tensor.name)
                yield tensor
            if self._half in uses:
                yield self._half_tensor(tensor, tensor.name, tensor.name + _SUFFIX)

    def _half_tensor(self, tensor: TensorProto, owner: str, name: str) -> TensorProto:
        import numpy as np
        from onnx import numpy_helper

        values = _array(tensor)
        largest = _check_finite(values, owner)
        if largest > FP16_LARGEST:
            raise EngineBuildError(
                f"weight {owner}: found a magnitude of {largest:g}, expected at most {FP16_LARGEST:g} in "
                "FP16; keep its node FP32 by a pattern of the precision policy"
            )
        halves = values.astype(np.float16)
        self.flushed += int(np.count_nonzero(values) - np.count_nonzero(halves))
        return numpy_helper.from_array(halves, name)


def _array(tensor: TensorProto) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _check_finite(values: Any, owner: str) -> float:
    """Returns the largest magnitude of an array of numbers, or refuses NaN and infinity."""
    import numpy as np

    if values.dtype.kind != "f" or not values.size:
        return 0.0
    # NaN wins both max and min, and neither makes a copy of weights that may fill gigabytes.
    largest = max(abs(float(np.max(values))), abs(float(np.min(values))))
    if not math.isfinite(largest):
        raise EngineBuildError(
            f"weight {owner}: found NaN or infinity, expected finite numbers; check the checkpoint"
        )
    return largest
