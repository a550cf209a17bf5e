"""Attention in an ONNX graph, found by its shape: the explicit form, or one Attention node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

EXPLICIT = "MatMul-Softmax-MatMul"
# What may stand between the products and the Softmax: scaling, masking, a guard against NaN, casts.
_BETWEEN = ("Add", "Cast", "Clip", "Div", "Dropout", "Identity", "Mul", "Sub", "Where")
_FUSED_OPS = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention")
_FARTHEST = 8


@dataclass(frozen=True)
class AttentionFound:
    """One attention.

    Attributes:
        node: name of the Softmax, or of the Attention node.
        form: ``EXPLICIT`` or the operator's name.
        precision: of the product of queries and keys, such as "fp16"; "unknown" without type inference.
        is_exposed: whether its scores or weights are outputs of the graph, which keeps them from being fused.
    """

    node: str
    form: str
    precision: str
    is_exposed: bool

    def to_json(self) -> dict[str, Any]:
        """Returns all fields."""
        return {"node": self.node, "form": self.form, "precision": self.precision, "exposed": self.is_exposed}


def find_attention(graph: GraphProto, precision_of: Callable[[str], str]) -> list[AttentionFound]:
    """Returns every attention of a graph, in its order.

    Args:
        graph: of any model.
        precision_of: the precision of a tensor, by name.
    """
    search = _Search(graph)
    found = []
    for node in graph.node:
        if node.op_type in _FUSED_OPS:
            found.append(AttentionFound(_name(node), node.op_type, precision_of(node.output[0]), False))
        elif node.op_type == "Softmax" and node.input and node.output:
            scores, inside = search.product_before(node.input[0])
            mixed, after = search.product_after(node.output[0])
            if scores is not None and mixed is not None:
                exposed = bool(search.outputs & {*inside, *after, node.output[0]})
                found.append(AttentionFound(_name(node), EXPLICIT, precision_of(scores.output[0]), exposed))
    return found


class _Search:
    def __init__(self, graph: GraphProto) -> None:
        self._weights = {tensor.name for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output if output}
        self._users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}

    def product_before(self, tensor: str) -> tuple[NodeProto | None, set[str]]:
        """Returns the product that a tensor comes from, and the tensors passed on the way, both ends in."""
        return self._nearest(tensor, self._step_back)

    def product_after(self, tensor: str) -> tuple[NodeProto | None, set[str]]:
        """Returns the product that a tensor goes into, and the tensors passed on the way."""
        return self._nearest(tensor, self._step_forward)

    def _nearest(
        self, tensor: str, step: Callable[[str], Iterator[tuple[NodeProto, list[str]]]]
    ) -> tuple[NodeProto | None, set[str]]:
        passed, front = {tensor}, [tensor]
        for _distance in range(_FARTHEST):
            following: list[str] = []
            for name in front:
                for node, beyond in step(name):
                    if node.op_type == "MatMul" and not self._weights & set(node.input):
                        return node, passed
                    if node.op_type in _BETWEEN:
                        following += [other for other in beyond if other not in passed]
            passed.update(following)
            front = following
        return None, passed

    def _step_back(self, tensor: str) -> Iterator[tuple[NodeProto, list[str]]]:
        node = self._makers.get(tensor)
        if node is not None:
            yield node, list(node.input)

    def _step_forward(self, tensor: str) -> Iterator[tuple[NodeProto, list[str]]]:
        for node in self._users.get(tensor, []):
            yield node, list(node.output)


def _name(node: NodeProto) -> str:
    return node.name or (node.output[0] if node.output else "")
