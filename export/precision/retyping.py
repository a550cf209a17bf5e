"""Retyping one graph in memory: nodes and weights become FP16, but for those that stay FP32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from export.precision.policy import FP16_LARGEST
from runtime.errors import EngineBuildError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# ONNX gives these no FP16 form for all of their float inputs.
_FP32_OPS = ("Range", "Resize")
_SUFFIX = "_fp16"


class Retyping:
    """Retypes one graph in place.

    Args:
        types: element types of the FP32 graph, by tensor name.
        kept: names of the nodes that stay FP32.

    Attributes:
        flushed: weights that were not 0 in FP32 and are in FP16.
    """

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
        """Retypes the model.

        Raises:
            EngineBuildError: a weight is NaN, infinite or above 65504 in magnitude, or an attribute has no
                FP16 form.
        """
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
                "FP16; keep its node FP32 with --fp32-layers or --fp32-blocks"
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
