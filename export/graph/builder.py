"""A thin writer of ONNX graphs: named nodes, shared constants, deterministic order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class GraphBuilder:
    """Collects nodes and initializers; every node is called ``<part>/<what>`` and gives one tensor."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

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
        """Stores a tensor once and returns its name; the bytes are copied."""
        from onnx import numpy_helper

        if name in self.initializers:
            raise ValueError(f"constant {name!r} exists already")
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def linear(self, name: str, x: str, weight: Array, bias: Array | None) -> str:
        """Appends x W^T + b for torch's ``[out, in]`` weight, as MatMul and Add."""
        y = self.add(f"{name}/matmul", "MatMul", [x, self.constant(f"{name}/weight", weight.T)])
        return y if bias is None else self.add(f"{name}/add", "Add", [y, self.constant(f"{name}/bias", bias)])

    def layer_norm(self, name: str, x: str, weight: Array, bias: Array, eps: float) -> str:
        """Appends one LayerNormalization; it is never decomposed, so its statistics stay FP32."""
        inputs = [x, self.constant(f"{name}/weight", weight), self.constant(f"{name}/bias", bias)]
        return self.add(name, "LayerNormalization", inputs, axis=-1, epsilon=eps)
