"""Whether the FP16 graph is the FP32 graph in another type: node by node, and weight by weight.

Outputs cannot tell: a weight with the wrong sign, a scale that is 1 % off or another epsilon move a logit by
less than FP16's own rounding. The two files can: every weight must be the rounded one, every attribute and
every edge the same. Which nodes stay FP32 is free, so casts that only one of the graphs has are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.onnx_files import load_model
from runtime.errors import SpecError, one_line
from runtime.names import printable_name

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

_SUFFIX = "_fp16"


def fp16_differences(fp32: Path, fp16: Path) -> Iterator[str]:
    """Yields what the FP16 graph holds that rounding the FP32 graph does not give, one text each.

    Weights are read one at a time, so that memory holds one tensor of each graph.

    Args:
        fp32: model.onnx.
        fp16: model_fp16.onnx.

    Raises:
        SpecError: a file cannot be read.
        MissingDependencyError: onnx is not installed.
    """
    graphs = load_model(fp32, weights=False), load_model(fp16, weights=False)
    yield from _wiring_differences(*graphs)
    yield from _weight_differences(*graphs, fp32.parent, fp16.parent)


def _wiring_differences(fp32: ModelProto, fp16: ModelProto) -> Iterator[str]:
    # What the FP32 graph calls a tensor of the FP16 graph.
    meant = {weight.name: weight.name for weight in fp32.graph.initializer}
    meant |= {value.name: value.name for value in fp16.graph.input}
    for weight in fp16.graph.initializer:
        if weight.name not in meant:
            meant[weight.name] = weight.name.removesuffix(_SUFFIX)
    expected = iter(fp32.graph.node)
    wanted = next(expected, None)
    for node in fp16.graph.node:
        is_wanted = wanted is not None and (node.op_type, node.name) == (wanted.op_type, wanted.name)
        if not is_wanted and node.op_type == "Cast" and node.input[0] in meant:
            meant[node.output[0]] = meant[node.input[0]]
            continue
        if wanted is None or not is_wanted:
            right = "the end" if wanted is None else f"{wanted.op_type} {printable_name(wanted.name)}"
            yield f"found {node.op_type} {printable_name(node.name)} where the FP32 graph has {right}"
            return
        yield from _node_differences(wanted, node, meant)
        meant |= dict(zip(node.output, wanted.output, strict=False))
        wanted = next(expected, None)
    if wanted is not None:
        yield f"{wanted.op_type} {printable_name(wanted.name)} of the FP32 graph is missing"
    for value in fp32.graph.output:
        if meant.get(value.name) != value.name:
            yield f"output {printable_name(value.name)} is another tensor"


def _node_differences(wanted: NodeProto, found: NodeProto, meant: dict[str, str]) -> Iterator[str]:
    name = printable_name(wanted.name)
    if [meant.get(one, one) for one in found.input] != list(wanted.input):
        yield f"{name} reads other tensors"
    if len(found.output) != len(wanted.output):
        yield f"{name} has {len(found.output)} outputs, expected {len(wanted.output)}"
    before = {attribute.name: attribute for attribute in wanted.attribute}
    after = {attribute.name: attribute for attribute in found.attribute}
    for key in sorted({*before, *after}):
        if key not in before or key not in after or not _is_same(wanted.op_type, before[key], after[key]):
            yield f"attribute {printable_name(key)} of {name} differs"


def _is_same(operator: str, wanted: AttributeProto, found: AttributeProto) -> bool:
    from onnx import TensorProto

    if operator == "Cast" and wanted.name == "to":
        return found.i == wanted.i or (wanted.i, found.i) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    if wanted.HasField("t") and found.HasField("t"):
        return _are_rounded(wanted.t, found.t, "", "")
    return bool(wanted == found)


def _weight_differences(
    fp32: ModelProto, fp16: ModelProto, fp32_folder: Path, fp16_folder: Path
) -> Iterator[str]:
    wanted = {weight.name: weight for weight in fp32.graph.initializer}
    for weight in fp16.graph.initializer:
        origin = wanted.get(weight.name) or wanted.get(weight.name.removesuffix(_SUFFIX))
        name = printable_name(weight.name)
        if origin is None:
            yield f"weight {name} is none of the FP32 graph"
        elif not _are_rounded(origin, weight, str(fp32_folder), str(fp16_folder)):
            yield f"weight {name} is not the FP32 one, rounded"


def _are_rounded(wanted: TensorProto, found: TensorProto, wanted_folder: str, found_folder: str) -> bool:
    expected, values = _array(wanted, wanted_folder), _array(found, found_folder)
    if expected.shape != values.shape:
        return False
    if expected.dtype == values.dtype:
        return bool(np.array_equal(expected, values))
    if (expected.dtype, values.dtype) != (np.dtype(np.float32), np.dtype(np.float16)):
        return False
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float16)
    return bool(np.array_equal(rounded, values))


def _array(tensor: TensorProto, folder: str) -> NDArray[np.generic]:
    from onnx import numpy_helper

    try:
        return np.asarray(numpy_helper.to_array(tensor, folder))
    except Exception as err:  # onnx raises several kinds on a damaged tensor
        raise SpecError(
            f"weight {printable_name(tensor.name)}: cannot be read ({one_line(err, 200)}); build the bundle "
            "again"
        ) from err
