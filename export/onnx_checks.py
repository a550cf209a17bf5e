"""What an ONNX file must be to become a bundle: the graph contract, FP32 throughout, valid structure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.onnx_files import first_line, load_model, require_onnx
from runtime.errors import SpecError
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


def check_contract(source: Path | ModelProto) -> int:
    """Returns the width D of the embedding of a graph that follows the contract.

    The contract: input ``images`` uint8 [batch, 224, 224, 3]; outputs ``logit`` float32 [batch] and
    ``embedding`` float32 [batch, D], in this order, with one symbolic batch axis.

    Raises:
        SpecError: the graph takes or gives something else.
    """
    TensorProto = require_onnx().TensorProto

    model = load_model(source, weights=False) if isinstance(source, Path) else source
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    _check_names("inputs", inputs, [INPUT_NAME])
    _check_names("outputs", list(model.graph.output), [LOGIT_NAME, EMBEDDING_NAME])
    logit, embedding = model.graph.output
    batch = _check_tensor(inputs[0], TensorProto.UINT8, [None, MOSAIC_SIDE, MOSAIC_SIDE, 3], "")
    _check_tensor(logit, TensorProto.FLOAT, [None], batch)
    _check_tensor(embedding, TensorProto.FLOAT, [None, 0], batch)
    return int(embedding.type.tensor_type.shape.dim[1].dim_value)


def check_fp32(path: Path) -> None:
    """Refuses a graph with anything in FP16 or BF16: it cannot be the reference of an FP32 bundle.

    Raises:
        SpecError: a weight, or the target of a Cast, is FP16 or BF16.
    """
    TensorProto = require_onnx().TensorProto
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    graph = load_model(path, weights=False).graph
    found = [tensor.name for tensor in graph.initializer if tensor.data_type in halves]
    found += [n.name for n in graph.node for a in n.attribute if a.name == "to" and a.i in halves]
    if found:
        raise SpecError(f"{path.name}: found FP16 inside ({found[0]}), expected an FP32 graph: model.onnx")


def check_structure(path: Path) -> None:
    """Runs onnx's own full check and strict shape inference on a file, and refuses two nodes of one name.

    Raises:
        SpecError: the graph is not valid ONNX, or two nodes have one name.
    """
    onnx = require_onnx()
    names = [node.name for node in load_model(path, weights=False).graph.node if node.name]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise SpecError(f"{path.name}: found two nodes named {twice[0]!r}, expected each name once")
    try:
        onnx.checker.check_model(str(path), full_check=True)
        onnx.shape_inference.infer_shapes(
            load_model(path, weights=False), check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise SpecError(f"{path.name}: not a valid ONNX graph: {first_line(err)}") from err


def opset_version(model: ModelProto) -> int:
    """Returns the version of the standard operator set that a model uses."""
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _check_names(what: str, values: list[ValueInfoProto], expected: list[str]) -> None:
    found = [value.name for value in values]
    if found != expected:
        raise SpecError(f"graph {what}: found {found}, expected {expected}")


def _check_tensor(value: ValueInfoProto, dtype: int, shape: list[int | None], batch: str) -> str:
    """Checks one input or output; in ``shape`` None is the batch axis and 0 any fixed size."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    found = [
        dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim
    ]
    fits = len(found) == len(shape) and all(
        isinstance(size, str) and size != "?" and batch in ("", size)
        if wanted is None
        else isinstance(size, int) and size > 0 and wanted in (0, size)
        for size, wanted in zip(found, shape, strict=True)
    )
    if tensor.elem_type != dtype or not fits:
        names = {None: batch or "batch", 0: "D"}
        expected = [names.get(wanted, wanted) for wanted in shape]
        types = [TensorProto.DataType.Name(kind).lower() for kind in (tensor.elem_type, dtype)]
        raise SpecError(
            f"graph tensor {value.name}: found {types[0]} {found}, expected {types[1]} {expected}"
        )
    return str(found[0])
