"""Reading and writing ONNX files: weights inside or beside, and no traces of the exporter.

Never imports torch. A file that this module writes depends on the graph alone: same graph, same bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineBuildError, MissingDependencyError, SpecError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

EXTERNAL_THRESHOLD_BYTES = 100_000_000
# Shape constants must stay in the graph file: shape inference reads them, and it never opens the data file.
_SMALL_TENSOR_BYTES = 1024
_ALIGNMENT = 4096  # a page, so that a runtime can map the weights instead of copying them


def require_onnx() -> Any:
    """Returns the onnx package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.shape_inference
    except ImportError as err:
        raise MissingDependencyError(
            f'onnx cannot be imported ({err}); install it with: pip install "dgsnet[export]"'
        ) from err
    return onnx


def data_path(path: Path) -> Path:
    """Returns where the weights of an ONNX file lie when they are not inside it."""
    return path.with_name(path.name + ".data")


def save_model(model: ModelProto, path: Path, *, external_threshold: int = EXTERNAL_THRESHOLD_BYTES) -> None:
    """Writes a model whose weights are in memory; ``model`` is left as it is.

    Everything that an exporter leaves about itself is dropped: documentation strings, metadata of model,
    graph, nodes, tensors and functions, the names of the tools.

    Args:
        model: with every weight in memory.
        path: the graph file; above the threshold its weights go to ``<name>.data`` beside it.
        external_threshold: bytes of weights from which on they are written beside the graph.

    Raises:
        EngineBuildError: a weight of the model lies in a file that was not loaded.
    """
    unloaded = [tensor.name for tensor in model.graph.initializer if _is_external(tensor)]
    if unloaded:
        raise EngineBuildError(
            f"{path.name}: weight {unloaded[0]} is not in memory; load the model with its data"
        )
    # Not len(raw_data): every access to that field copies it.
    total = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    beside = data_path(path)
    if total < external_threshold:
        slim = _copy(model, lambda tensor: tensor)
        beside.unlink(missing_ok=True)
    else:
        with beside.open("wb") as stream:
            slim = _copy(model, lambda tensor: _moved_to(stream, beside.name, tensor))
    _strip(slim)
    path.write_bytes(slim.SerializeToString(deterministic=True))


def load_model(path: Path, *, weights: bool = True) -> ModelProto:
    """Reads an ONNX file.

    Args:
        path: the graph file.
        weights: whether tensors in the data file are read too; without them the graph alone is in memory.

    Raises:
        SpecError: the file is missing, damaged or empty, or its data file is missing, too short or
            somewhere else than beside it.
    """
    onnx = require_onnx()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model: ModelProto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as err:
        raise SpecError(f"{path.name}: cannot be read as ONNX ({first_line(err)}); export it again") from err
    if not model.graph.node or not model.opset_import:
        raise SpecError(f"{path.name}: found no graph inside, expected an ONNX model; export it again")
    for tensor in model.graph.initializer:
        if _is_external(tensor):
            _check_external(path, tensor)
    if weights:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as err:
            raise SpecError(f"{path.name}: its weights cannot be read ({first_line(err)})") from err
    return model


def external_files(model: ModelProto) -> list[str]:
    """Returns the names of the files that hold weights of a model, sorted."""
    tensors = [tensor for tensor in model.graph.initializer if _is_external(tensor)]
    return sorted({e.value for tensor in tensors for e in tensor.external_data if e.key == "location"})


def inferred_types(model: ModelProto) -> dict[str, int]:
    """Returns the ONNX element type of every tensor of the main graph, by name.

    Raises:
        EngineBuildError: type inference fails.
    """
    onnx = require_onnx()
    skeleton = _copy(model, lambda tensor: _moved_to(None, "weights", tensor))
    try:
        graph = onnx.shape_inference.infer_shapes(
            skeleton, check_type=True, strict_mode=True, data_prop=True
        ).graph
    except onnx.shape_inference.InferenceError as err:
        raise EngineBuildError(f"the types of the graph do not fit together: {first_line(err)}") from err
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _copy(model: ModelProto, tensor_from: Any) -> ModelProto:
    """Returns a copy with each initializer replaced, made without ever holding the weights twice."""
    from onnx import ModelProto

    copied = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set_field(copied, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set_field(copied.graph, field.name, value)
    for tensor in model.graph.initializer:
        copied.graph.initializer.append(tensor_from(tensor))
    return copied


def _set_field(message: Any, name: str, value: Any) -> None:
    target = getattr(message, name)
    if hasattr(target, "extend"):
        target.extend(value)
    elif hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


def _moved_to(stream: Any, location: str, tensor: TensorProto) -> TensorProto:
    """Returns a tensor that points into the data file; ``stream`` None writes nothing."""
    from onnx import TensorProto

    if tensor.ByteSize() < _SMALL_TENSOR_BYTES or not tensor.HasField("raw_data"):
        return tensor
    offset = length = 0
    if stream is not None:
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        offset = stream.tell()
        length = stream.write(tensor.raw_data)
    moved = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    moved.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        moved.external_data.add(key=key, value=str(value))
    return moved


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == type(tensor).EXTERNAL)


def _check_external(path: Path, tensor: TensorProto) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if not location or location in (".", "..") or os.path.basename(location) != location or "\\" in location:
        raise SpecError(
            f"{path.name}: weight {tensor.name} lies at {location!r}, expected a file beside the graph"
        )
    file = path.parent / location
    if file.is_symlink() or not file.is_file():
        raise SpecError(f"{path.name}: its weights {location} are missing; copy that file beside it")
    try:
        end = int(fields.get("offset", "0")) + int(fields.get("length", "0"))
    except ValueError as err:
        raise SpecError(f"{path.name}: weight {tensor.name} has a place that is no number") from err
    if file.stat().st_size < end:
        raise SpecError(
            f"{location}: found {file.stat().st_size} bytes, expected at least {end}; copy the file again"
        )


def _strip(model: ModelProto) -> None:
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
        if not _is_external(tensor):
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


def first_line(err: BaseException) -> str:
    """Returns an error's first line, shortened."""
    return " ".join(str(err).split())[:300]
