"""From the FP32 graph of a detector to the FP16 graph, and proof that it is FP16.

Precision lives in the graph, because strongly typed TensorRT builds exactly what the graph says. The
conversion is written here rather than taken from onnxconverter-common 1.16: on a contract graph that one
turns both outputs into FP16, rounds values to FP16 between two neighbouring FP32 nodes and gives one MatMul
inputs of two types, which onnx's full check refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.onnx_checks import check_contract, check_structure, opset_version
from export.onnx_files import inferred_types, load_model, save_model
from export.onnx_metadata import contract_metadata
from export.precision.policy import WEIGHTED_OPS, PrecisionPolicy
from export.precision.report import PrecisionReport
from export.precision.retyping import Retyping
from runtime.errors import EngineBuildError

if TYPE_CHECKING:
    from onnx import ModelProto


def fp16_from_fp32(source: Path, target: Path, policy: PrecisionPolicy) -> PrecisionReport:
    """Writes the FP16 form of an FP32 contract graph: same names, same input, float32 outputs.

    Args:
        source: an ONNX file that follows the contract, weights inside or beside it.
        target: where the FP16 graph goes; written only if it passes the policy.
        policy: what stays FP32, and how much must not.

    Raises:
        SpecError: the source does not follow the contract, or a graph is not valid ONNX.
        UsageError: a pattern of the policy matches no node, or a block number is none of the graph's.
        EngineBuildError: a weight is NaN, infinite or above 65504 in magnitude, or the graph has parts
            that this conversion does not know.
        GateFailedError: too little of the graph came out as FP16.
    """
    model = load_model(source)
    metadata = contract_metadata(check_contract(model), opset_version(model))
    kept = _kept_nodes(model, policy)
    conversion = Retyping(inferred_types(model), kept)
    conversion.run(model)
    types = inferred_types(model)
    from onnx import TensorProto

    weighted = [
        (node.name, types[node.output[0]] == TensorProto.FLOAT16)
        for node in model.graph.node
        if node.op_type in WEIGHTED_OPS
    ]
    share = policy.share(weighted)
    policy.require(share, target.name)
    save_model(model, target, metadata=metadata)
    check_contract(target)
    check_structure(target)
    return PrecisionReport(
        fp16_share=share,
        weighted_nodes=len(weighted),
        weighted_fp32=sum(not is_half for _name, is_half in weighted),
        weighted_kept_by_user=sum(policy.user_keeps_fp32(name) for name, _is_half in weighted),
        fp32_nodes=len(kept),
        casts=sum(node.op_type == "Cast" for node in model.graph.node),
        flushed_weights=conversion.flushed,
        policy=policy,
    )


def _kept_nodes(model: ModelProto, policy: PrecisionPolicy) -> set[str]:
    names = [node.name for node in model.graph.node]
    if "" in names or len(set(names)) < len(names):
        raise EngineBuildError(
            "the FP32 graph has nodes without a name or with one name; name each node once"
        )
    policy.check_names(names)
    if model.functions or any(a.g.node or a.graphs for node in model.graph.node for a in node.attribute):
        raise EngineBuildError(
            "the FP32 graph has functions or control flow, expected plain nodes; inline them"
        )
    return {name for name in names if policy.keeps_fp32(name)}
