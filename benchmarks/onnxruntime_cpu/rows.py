"""Moves the linear layers of a graph, and what lies between them, from ``[batch, tokens, width]`` to rows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Each gives a row from the same row alone; their other inputs are checked to be numbers or vectors.
_ROW_BY_ROW = {"Add", "Sub", "Mul", "Div", "Sigmoid", "Erf", "Tanh", "Gelu"}


def constant_array(model: ModelProto, name: str) -> NDArray[Any] | None:
    """Returns a weight that lies inside the graph file, None where there is none or it lies beside."""
    from onnx import TensorProto, numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == name and tensor.data_location != TensorProto.EXTERNAL:
            array: NDArray[Any] = numpy_helper.to_array(tensor)
            return array
    return None


class RowsWriter:
    """Rewrites one model; a tensor ``[batch, T, D]`` then lives as ``<name>/rows``, ``[batch * T, D]``.

    Args:
        model: rewritten in place; nodes that nothing needs any more are left to the caller.
        inferred: the same model with the shapes of its tensors.
    """

    def __init__(self, model: ModelProto, inferred: ModelProto) -> None:
        self._model = model
        self._sides = {
            value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in inferred.graph.value_info
        }
        self._weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        self._uses.update(output.name for output in model.graph.output)
        self._consumers = {name: node for node in model.graph.node for name in node.input}
        self._nodes: list[NodeProto] = []
        self._rows: set[str] = set()
        self._gone: set[str] = set()

    def rewrite(self) -> int:
        """Returns how many linear layers became a Gemm."""
        count = 0
        merged: set[str] = set()
        for node in self._model.graph.node:
            if node.output[0] in merged:
                continue
            bias = self._bias(node)
            if bias is not None:
                merged.add(bias.output[0])
                self._gemm(node, bias)
                count += 1
            elif not self._keeps_rows(node):
                self._plain(node)
        del self._model.graph.node[:]
        self._model.graph.node.extend(self._nodes)
        return count

    def _bias(self, node: NodeProto) -> NodeProto | None:
        """Returns the Add of a vector that follows a product of tokens with a weight."""
        if node.op_type != "MatMul" or node.domain or self._uses[node.output[0]] != 1:
            return None
        if not self._is_tokens(node.input[0]) or len(self._weights.get(node.input[1], [])) != 2:
            return None
        add = self._consumers.get(node.output[0])
        if add is None or add.op_type != "Add":
            return None
        others = [name for name in add.input if name != node.output[0]]
        width = self._weights[node.input[1]][1]
        return add if [self._weights.get(name) for name in others] == [[width]] else None

    def _gemm(self, product: NodeProto, add: NodeProto) -> None:
        bias = next(name for name in add.input if name != product.output[0])
        inputs = [self._as_rows(product.input[0]), product.input[1], bias]
        self._emit(product.name, "Gemm", inputs, [_rows(add.output[0])])
        self._note(add.output[0])

    def _keeps_rows(self, node: NodeProto) -> bool:
        """Writes a node in rows if one of its inputs is in rows and it can be; returns whether it did."""
        if node.domain or not self._gone.intersection(node.input):
            return False
        if node.op_type == "Reshape" and node.input[0] in self._gone:
            shape = constant_array(self._model, node.input[1])
            if shape is None or shape[0] != 0 or (shape[1:] <= 0).any():
                return False
            again = self._shape([-1, *(int(side) for side in shape[1:])])
            self._emit(node.name, "Reshape", [_rows(node.input[0]), again], list(node.output))
            return True
        if node.op_type == "Split":
            if _number(node, "axis", 0) not in (-1, 2) or not all(map(self._is_tokens, node.output)):
                return False
        elif node.op_type == "LayerNormalization":
            if _number(node, "axis", -1) not in (-1, 2) or len(node.output) != 1:
                return False
        elif node.op_type not in _ROW_BY_ROW or not self._is_row_by_row(node):
            return False
        inputs = [name if name in self._weights else self._as_rows(name) for name in node.input]
        self._emit(node.name, node.op_type, inputs, [_rows(name) for name in node.output])
        self._nodes[-1].attribute.extend(node.attribute)
        for attribute in self._nodes[-1].attribute:
            if attribute.name == "axis":
                attribute.i = -1
        for name in node.output:
            self._note(name)
        return True

    def _is_row_by_row(self, node: NodeProto) -> bool:
        sides = self._sides.get(node.output[0], [])
        for name in node.input:
            if name in self._weights:
                if self._weights[name] not in ([], [1], sides[-1:]):
                    return False
            elif self._sides.get(name) != sides or not self._is_tokens(name):
                return False
        return self._is_tokens(node.output[0])

    def _plain(self, node: NodeProto) -> None:
        for name in sorted(self._gone.intersection(node.input)):
            shape = self._shape([-1, *self._sides[name][1:]])
            self._emit(f"{name}/tokens", "Reshape", [_rows(name), shape], [name])
            self._gone.discard(name)
        self._nodes.append(node)

    def _is_tokens(self, name: str) -> bool:
        """Whether a tensor is ``[batch, T, D]`` with T and D known and the batch free."""
        sides = self._sides.get(name, [])
        return len(sides) == 3 and sides[0] == 0 and min(sides[1:]) > 0

    def _as_rows(self, name: str) -> str:
        if name not in self._rows:
            self._rows.add(name)
            producer = self._producers.get(name)
            # Reshaping what was just reshaped needs the last shape alone.
            source = producer.input[0] if producer is not None and producer.op_type == "Reshape" else name
            if source in self._gone:
                source = _rows(source)
            self._emit(
                _rows(name), "Reshape", [source, self._shape([-1, self._sides[name][2]])], [_rows(name)]
            )
        return _rows(name)

    def _note(self, name: str) -> None:
        self._rows.add(name)
        self._gone.add(name)

    def _shape(self, sides: list[int]) -> str:
        from onnx import numpy_helper

        name = "cpu/shape_" + "_".join("rows" if side < 0 else str(side) for side in sides)
        if name not in self._weights:
            tensor = numpy_helper.from_array(np.array(sides, dtype=np.int64), name)
            self._model.graph.initializer.append(tensor)
            self._weights[name] = [len(sides)]
        return name

    def _emit(self, name: str, op: str, inputs: list[str], outputs: list[str]) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(op, inputs, outputs, name=name))


def _rows(name: str) -> str:
    return f"{name}/rows"


def _number(node: NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
