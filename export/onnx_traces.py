"""What exporters leave about themselves inside a model, which would make equal graphs unequal files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto


def is_external(tensor: TensorProto) -> bool:
    """Whether the numbers of a tensor lie in another file."""
    return bool(tensor.data_location == type(tensor).EXTERNAL)


def strip_traces(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Drops what an exporter leaves about itself, in place: texts, metadata, names of tools, paths.

    Args:
        model: whatever it was made by.
        metadata: what the model is to say of itself afterwards, in this order.
    """
    for name in (
        "doc_string",
        "metadata_props",
        "producer_version",
        "domain",
        "model_version",
        "training_info",
    ):
        model.ClearField(name)
    model.producer_name = "dgsnet"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    _strip_graph(model.graph)
    for function in model.functions:
        _clear(function)
        _strip_nodes(function.node)
        for value in function.value_info:
            _clear(value)


def _strip_graph(graph: GraphProto) -> None:
    _clear(graph)
    _strip_nodes(graph.node)
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _clear(item)
    for tensor in graph.initializer:
        if not is_external(tensor):
            # Loading from a data file leaves this set to its default, which would change the bytes.
            tensor.ClearField("data_location")


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        _clear(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for tensor in (attribute.t, *attribute.tensors):
                if tensor.data_type:
                    _clear(tensor)
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    _strip_graph(graph)


def _clear(message: Any) -> None:
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
