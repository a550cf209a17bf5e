"""A thin writer of ONNX graphs: named nodes, shared constants, deterministic order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = NDArray[Any]


@dataclass(frozen=True)
class WrittenGraph:
    """An ONNX model whose weights are still arrays of somebody else: nothing of them was copied.

    Attributes:
        model: complete but for its initializers.
        weights: what they will hold, by name, in their order; any strides.
    """

    model: ModelProto
    weights: dict[str, Array]

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(array.size for array in self.weights.values())


class GraphBuilder:
    """Collects nodes and weights; every node is called ``<part>/<what>`` and gives one tensor."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}

    def add(
        self, name: str, op: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        """Appends a node and returns the name of its output, which is the node's own unless given."""
        return self.add_many(name, op, inputs, [output or name], **attributes)[0]

    def add_many(
        self, name: str, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Appends a node with several outputs and returns their names."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), name=name, **attributes))
        return list(outputs)

    def constant(self, name: str, value: Array) -> str:
        """Notes a tensor once and returns its name; the array is not copied and must not change."""
        if name in self.weights:
            raise ValueError(f"constant {name!r} exists already")
        self.weights[name] = value
        return name

    def linear(self, name: str, x: str, weight: Array, bias: Array | None) -> str:
        """Appends x W^T + b for torch's ``[out, in]`` weight, as MatMul and Add."""
        y = self.add(f"{name}/matmul", "MatMul", [x, self.constant(f"{name}/weight", weight.T)])
        return y if bias is None else self.add(f"{name}/add", "Add", [y, self.constant(f"{name}/bias", bias)])

    def layer_norm(self, name: str, x: str, weight: Array, bias: Array, eps: float) -> str:
        """Appends one LayerNormalization; it is never decomposed, so its statistics stay FP32."""
        inputs = [x, self.constant(f"{name}/weight", weight), self.constant(f"{name}/bias", bias)]
        return self.add(name, "LayerNormalization", inputs, axis=-1, epsilon=eps)
