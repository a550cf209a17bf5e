"""What an ONNX file must be to become a bundle: the graph contract, FP32 throughout, valid structure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from export.onnx_files import load_model, require_onnx, without_weights
from runtime.errors import SpecError, one_line
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

logger = logging.getLogger("dgsnet.export")

# LayerNormalization is one node from 17 on; 20 is what the oldest supported parser reads, TensorRT 10.3; and
# what is newer than 23 was never tried here.
OLDEST_OPSET, PORTABLE_OPSET, NEWEST_OPSET = 17, 20, 23
STANDARD_DOMAINS = ("", "ai.onnx")
_MOST_AXES = 9


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


def check_plain_fp32(model: ModelProto, name: str) -> None:
    """Refuses a graph that cannot be the FP32 reference of a bundle, or that engines cannot read.

    Raises:
        SpecError: an opset out of range, operators outside the standard, control flow or functions, or
            numbers that are neither FP32, integers nor truth values.
    """
    TensorProto = require_onnx().TensorProto
    opset = opset_version(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise SpecError(
            f"{name}: found opset {opset}, expected {OLDEST_OPSET} to {NEWEST_OPSET}; export it with opset 18"
        )
    if opset > PORTABLE_OPSET:
        logger.warning(
            "%s: opset %d is not read by TensorRT 10.3 (JetPack 6), which ends at %d; opset 18 is",
            name, opset, PORTABLE_OPSET,
        )  # fmt: skip
    foreign = [node for node in model.graph.node if node.domain not in STANDARD_DOMAINS]
    if foreign:
        found = f"{foreign[0].domain}.{foreign[0].op_type}"
        raise SpecError(f"{name}: found operator {found}, expected standard ones; export without fusions")
    branching = [n for n in model.graph.node if any(a.g.node or a.graphs for a in n.attribute)]
    if model.functions or branching:
        found = f"node {branching[0].name} ({branching[0].op_type})" if branching else "functions"
        raise SpecError(f"{name}: found {found}, expected no control flow and no functions; inline them")
    allowed = {
        TensorProto.FLOAT, TensorProto.BOOL, TensorProto.UINT8,
        TensorProto.INT8, TensorProto.INT32, TensorProto.INT64,
    }  # fmt: skip
    typed = [(tensor.name, tensor.data_type) for tensor in model.graph.initializer]
    typed += [(n.name, a.i) for n in model.graph.node for a in n.attribute if a.name == "to"]
    typed += [(n.name, a.t.data_type) for n in model.graph.node for a in n.attribute if a.t.data_type]
    for owner, kind in typed:
        if kind not in allowed:
            text = {TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.DOUBLE: "FP64"}
            found = text.get(kind, TensorProto.DataType.Name(kind))
            raise SpecError(f"{name}: found {found} inside ({owner}), expected an FP32 graph: model.onnx")
    quantised = [n for n in model.graph.node if "Quantize" in n.op_type or n.op_type.endswith("Integer")]
    if quantised:
        raise SpecError(
            f"{name}: found {quantised[0].op_type} ({quantised[0].name}), expected an FP32 graph: model.onnx"
        )


def check_batch_is_free(model: ModelProto, name: str) -> None:
    """Refuses a graph whose outputs have a number of rows that is fixed inside, whatever its outputs state.

    Raises:
        SpecError: shape inference finds a fixed batch, or another shape than the output states.
    """
    onnx = require_onnx()
    # What the outputs state would hide what the nodes give, so their first axis is left out.
    bare = without_weights(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.shape.dim[0].Clear()
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as err:
        raise SpecError(f"{name}: its shapes do not fit together: {one_line(err)}") from err
    for value in inferred.output:
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value"):
            raise SpecError(
                f"{name}: found {first.dim_value} rows in {value.name} whatever the input has, expected "
                f"one a picture{_frozen_at(model)}; export it with a dynamic batch and two example pictures"
            )


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
        raise SpecError(f"{path.name}: not a valid ONNX graph: {one_line(err)}") from err


def _frozen_at(model: ModelProto) -> str:
    """Returns the Reshape that most likely freezes the batch: the first with a number in front and no -1."""
    from onnx import numpy_helper

    shapes = {t.name: t for t in model.graph.initializer if len(t.dims) == 1 and t.dims[0] < _MOST_AXES}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes:
            shape = numpy_helper.to_array(shapes[node.input[1]])
            if len(shape) and shape[0] > 0 and -1 not in shape:
                return f" (see Reshape {node.name}: {shape.tolist()})"
    return ""


def opset_version(model: ModelProto) -> int:
    """Returns the version of the standard operator set that a model uses.

    Raises:
        SpecError: it names none.
    """
    versions = [int(opset.version) for opset in model.opset_import if opset.domain in STANDARD_DOMAINS]
    if not versions:
        raise SpecError("graph: found no version of the standard operators, expected one; export it again")
    return versions[0]


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
