"""The facts of an ONNX file: what goes in and out, where nodes and weights are, in which precision."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.inspect.attention import find_attention
from export.inspect.hashes import hashed_files
from export.inspect.listing import bundle_listing
from export.onnx_checks import check_contract, opset_version
from export.onnx_files import external_files, inferred_types, load_model
from export.onnx_metadata import metadata_differences
from export.precision.policy import WEIGHTED_OPS, PrecisionPolicy
from runtime.errors import EngineBuildError, SpecError, one_line
from runtime.names import printable_name

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

UNKNOWN = "unknown"
_SPELLED = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
_BLOCK = re.compile(r"(?:^|[/.])(?:res)?(?:block|layer|encoder)s?[_./](?:layers?[_./])?(\d+)(?=[/.]|$)")
_BITS = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}


def onnx_facts(path: Path) -> dict[str, Any]:
    """Returns what an ONNX file holds, read without its weights.

    Raises:
        SpecError: it is missing or damaged, or its weights are missing or elsewhere than beside it.
        MissingDependencyError: onnx is not installed.
        OSError: it cannot be read.
    """
    model = load_model(path, weights=False)
    graph = model.graph
    _refuse_odd_names(model, path)
    types, trouble = _types(model)

    def precision_of(name: str) -> str:
        return _dtype_name(types[name]) if types.get(name) else UNKNOWN

    beside = external_files(model)
    entries = hashed_files([path, *(path.parent / name for name in beside)])
    listing = bundle_listing(path, entries[0])
    stated = listing["policy"] if listing else None
    policy = PrecisionPolicy() if stated is None else PrecisionPolicy.from_json(stated)
    return {
        "schema": 1,
        "kind": "onnx",
        "path": printable_name(str(path)),
        "files": [
            {"name": printable_name(name), "size": entry.size, "sha256": entry.sha256}
            for name, entry in zip([path.name, *beside], entries, strict=True)
        ],
        "bundle": listing,
        "ir_version": model.ir_version,
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "producer": " ".join(f"{model.producer_name} {model.producer_version}".split()),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "inputs": [_signature(value) for value in _true_inputs(graph)],
        "outputs": [_signature(value) for value in graph.output],
        "contract": _contract(model),
        "types": trouble,
        "nodes": len(graph.node),
        "nodes_by_op": _counted(node.op_type for node in graph.node),
        "parts": _parts(graph),
        "weights_by_dtype": _weights_by_dtype(graph),
        "weighted": _weighted(graph, precision_of, policy),
        "layer_norms": sum(node.op_type == "LayerNormalization" for node in graph.node),
        "attention": [
            {"part": part_of(found.node)} | found.to_json() for found in find_attention(graph, precision_of)
        ],
    }


def part_of(name: str) -> str:
    """Returns the part of the model that a node's name says: ``block_3``, ``head``, or "(unnamed)"."""
    block = _BLOCK.search(name)
    if block:
        return f"block_{int(block[1])}"
    return name.strip("/").split("/")[0] or "(unnamed)"


def _types(model: ModelProto) -> tuple[dict[str, int], str | None]:
    try:
        return inferred_types(model), None
    except (EngineBuildError, ValueError) as err:
        # A damaged graph can hold element types that onnx has no name for.
        return {}, one_line(err)


def _refuse_odd_names(model: ModelProto, path: Path) -> None:
    """Refuses names that are no text: protobuf gives those as bytes, which nothing below can compare."""
    graph = model.graph
    names = [model.producer_name, model.producer_version, *(opset.domain for opset in model.opset_import)]
    names += [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    for node in graph.node:
        names += [node.name, node.op_type, *node.input, *node.output]
    for value in (*graph.input, *graph.output):
        names += [value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)]
    names += [tensor.name for tensor in graph.initializer]
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise SpecError(
            f"{path.name}: found the name {odd[0]!r:.80}, expected names in UTF-8; the file is damaged, "
            "export it again"
        )


def _contract(model: ModelProto) -> dict[str, Any]:
    """Returns whether the contract is followed, and whether what the file says of itself is that contract."""
    try:
        embed_dim, opset = check_contract(model), opset_version(model)
    except (SpecError, IndexError) as err:
        return {"follows": False, "embed_dim": None, "reason": str(err), "metadata_differs": None}
    differs = metadata_differences(model, embed_dim, opset)
    return {"follows": True, "embed_dim": embed_dim, "reason": None, "metadata_differs": differs}


def _true_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _signature(value: ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [
        dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim
    ]
    return {"name": value.name, "dtype": _dtype_name(tensor.elem_type), "shape": shape}


def _dtype_name(kind: int) -> str:
    from onnx import TensorProto

    if kind not in TensorProto.DataType.values():
        return UNKNOWN
    name = str(TensorProto.DataType.Name(kind)).lower()
    return _SPELLED.get(name, name)


def _bytes(tensor: TensorProto) -> int:
    """Returns what a tensor's numbers take, from its shape: reading its bytes would copy them."""
    from onnx import helper

    name = _dtype_name(tensor.data_type)
    count = math.prod(max(int(dim), 0) for dim in tensor.dims)
    if name in _BITS:
        return (count * _BITS[name] + 7) // 8
    try:
        return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError):
        return 0


def _parts(graph: GraphProto) -> dict[str, dict[str, int]]:
    """Returns nodes and bytes of weights per part; a weight belongs to the first node that reads it."""
    readers: dict[str, str] = {}
    parts: dict[str, dict[str, int]] = {}
    for node in graph.node:
        part = part_of(node.name)
        parts.setdefault(part, {"nodes": 0, "weight_bytes": 0})["nodes"] += 1
        for name in node.input:
            readers.setdefault(name, part)
    for tensor in graph.initializer:
        part = readers.get(tensor.name, "(unused)")
        parts.setdefault(part, {"nodes": 0, "weight_bytes": 0})["weight_bytes"] += _bytes(tensor)
    return parts


def _weights_by_dtype(graph: GraphProto) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in graph.initializer:
        entry = found.setdefault(_dtype_name(tensor.data_type), {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += _bytes(tensor)
    return found


def _weighted(graph: GraphProto, precision_of: Any, policy: PrecisionPolicy) -> dict[str, Any]:
    """Returns MatMul, Gemm and Conv by precision, and what the precision policy says about them."""
    nodes = [node for node in graph.node if node.op_type in WEIGHTED_OPS and node.output]
    precisions = {id(node): precision_of(node.output[0]) for node in nodes}
    by_op = {
        op: _counted(precisions[id(node)] for node in nodes if node.op_type == op) for op in WEIGHTED_OPS
    }
    return {
        "nodes": len(nodes),
        "by_precision": _counted(precisions.values()),
        "by_op": {op: counts for op, counts in by_op.items() if counts},
        "fp16_share": None
        if UNKNOWN in precisions.values()
        else policy.share([(node.name, precisions[id(node)] == "fp16") for node in nodes]),
        "kept_fp32": [node.name for node in nodes if policy.keeps_fp32(node.name)],
        "policy": policy.to_json(),
    }


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
