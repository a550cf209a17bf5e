"""Reading and writing ONNX files: weights inside or beside, and no traces of the exporter.

Never imports torch. A file that this module writes depends on the graph alone: same graph, same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from export.graph.builder import WrittenGraph
from export.onnx_traces import is_external, strip_traces
from export.onnx_weights import check_external, data_path, moved_to, tensor_from_array, weights_beside
from runtime.errors import EngineBuildError, MissingDependencyError, SpecError, one_line

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

EXTERNAL_THRESHOLD_BYTES = 100_000_000


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


def save_graph(
    graph: WrittenGraph,
    path: Path,
    *,
    external_threshold: int = EXTERNAL_THRESHOLD_BYTES,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a graph whose weights are arrays: one of them at a time is copied, and each is written once.

    The bytes are those that ``save_model`` gives for the same model.

    Args:
        graph: its model is completed in place.
        path: the graph file; above the threshold its weights go to ``<name>.data`` beside it.
        external_threshold: bytes of weights from which on they are written beside the graph.
        metadata: what the file says of itself; ``export.onnx_metadata`` has that of a contract graph.
    """
    total = sum(array.nbytes for array in graph.weights.values())
    with weights_beside(path, total >= external_threshold) as stream:
        for name, array in graph.weights.items():
            graph.model.graph.initializer.append(tensor_from_array(stream, data_path(path).name, name, array))
    strip_traces(graph.model, metadata)
    path.write_bytes(graph.model.SerializeToString(deterministic=True))


def save_model(
    model: ModelProto,
    path: Path,
    *,
    external_threshold: int = EXTERNAL_THRESHOLD_BYTES,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a model whose weights are in memory; ``model`` is left as it is.

    Everything that an exporter leaves about itself is dropped: documentation strings, metadata of model,
    graph, nodes, tensors and functions, the names of the tools.

    Args:
        model: with every weight in memory.
        path: the graph file; above the threshold its weights go to ``<name>.data`` beside it.
        external_threshold: bytes of weights from which on they are written beside the graph.
        metadata: what the file says of itself; ``export.onnx_metadata`` has that of a contract graph.

    Raises:
        EngineBuildError: a weight of the model lies in a file that was not loaded.
    """
    unloaded = [tensor.name for tensor in model.graph.initializer if is_external(tensor)]
    if unloaded:
        raise EngineBuildError(
            f"{path.name}: weight {unloaded[0]} is not in memory; load the model with its data"
        )
    # Not len(raw_data): every access to that field copies it.
    total = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    with weights_beside(path, total >= external_threshold) as stream:
        location = data_path(path).name
        slim = _copy(model, lambda tensor: tensor if stream is None else moved_to(stream, location, tensor))
    strip_traces(slim, metadata)
    path.write_bytes(slim.SerializeToString(deterministic=True))


def move_model(source: Path, target: Path) -> None:
    """Moves a graph file of the same name and its data file to another folder of the same file system.

    Raises:
        OSError: the folder cannot be written.
    """
    beside = data_path(source)
    if beside.exists():
        os.replace(beside, data_path(target))
    else:
        data_path(target).unlink(missing_ok=True)
    os.replace(source, target)


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
        raise SpecError(f"{path.name}: cannot be read as ONNX ({one_line(err)}); export it again") from err
    if not model.graph.node or not model.opset_import:
        raise SpecError(f"{path.name}: found no graph inside, expected an ONNX model; export it again")
    for tensor in model.graph.initializer:
        if is_external(tensor):
            check_external(path, tensor)
    if weights:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as err:
            raise SpecError(f"{path.name}: its weights cannot be read ({one_line(err)})") from err
    return model


def external_files(model: ModelProto) -> list[str]:
    """Returns the names of the files that hold weights of a model, sorted."""
    tensors = [tensor for tensor in model.graph.initializer if is_external(tensor)]
    return sorted({e.value for tensor in tensors for e in tensor.external_data if e.key == "location"})


def inferred_types(model: ModelProto) -> dict[str, int]:
    """Returns the ONNX element type of every tensor of the main graph, by name.

    Raises:
        EngineBuildError: type inference fails.
    """
    onnx = require_onnx()
    try:
        graph = onnx.shape_inference.infer_shapes(
            without_weights(model), check_type=True, strict_mode=True, data_prop=True
        ).graph
    except onnx.shape_inference.InferenceError as err:
        raise EngineBuildError(f"the types of the graph do not fit together: {one_line(err)}") from err
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def without_weights(model: ModelProto) -> ModelProto:
    """Returns a copy whose large weights say where they would lie, enough for shape and type inference."""
    return _copy(model, lambda tensor: moved_to(None, "weights", tensor))


def check_finite(tensor: TensorProto, place: str) -> None:
    """Refuses a weight with NaN or infinity.

    Raises:
        SpecError: it has one; the message names the weight.
    """
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    # NaN wins both max and min, and neither makes a copy of weights that may fill gigabytes.
    if values.dtype.kind == "f" and values.size and not np.isfinite([values.max(), values.min()]).all():
        raise SpecError(f"{place}: weight {tensor.name} holds NaN or Inf; train or export again")


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
