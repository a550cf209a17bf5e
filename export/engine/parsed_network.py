"""From an ONNX file to a checked TensorRT network: parser errors, the graph contract, the share of FP16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from export.engine.trt_module import TrtModule
from runtime.errors import EngineBuildError, SpecError
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    import tensorrt

    from runtime.backends.tensorrt.log import TensorRtLog

LayerT = TypeVar("LayerT")
_ERRORS_SHOWN = 3


def parse_network(
    trt: TrtModule, builder: tensorrt.Builder, log: TensorRtLog, onnx_path: Path
) -> tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """Returns (network, parser) for an ONNX file that follows the contract; keep both until the build ends.

    Raises:
        EngineBuildError: the file is missing or the parser refuses it.
        SpecError: inputs or outputs differ from the contract.
    """
    if not onnx_path.is_file():
        raise EngineBuildError(f"{onnx_path.name}: no such ONNX file; export the model first")
    network = builder.create_network(trt.network_flags)
    parser = trt.api.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [_error_text(parser.get_error(k)) for k in range(parser.num_errors)]
        more = f" (and {len(errors) - _ERRORS_SHOWN} more)" if len(errors) > _ERRORS_SHOWN else ""
        reason = "; ".join(errors[:_ERRORS_SHOWN]) or log.take_errors() or "no reason given"
        raise EngineBuildError(f"{onnx_path.name}: {trt.backend} cannot read it: {reason}{more}")
    _check_contract(trt, network, onnx_path.name)
    _allow_any_attention(trt, network)
    return network, parser


def weighted_outputs(trt: TrtModule, network: tensorrt.INetworkDefinition) -> list[tuple[str, bool]]:
    """Returns (layer name, output is FP16) of every MatMul, Gemm and Conv of the parsed network."""
    kinds = (trt.api.LayerType.CONVOLUTION, trt.api.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    half = trt.api.DataType.HALF
    return [(layer.name, layer.get_output(0).dtype == half) for layer in layers if layer.type in kinds]


def _error_text(error: tensorrt.ParserError) -> str:
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return node + " ".join(error.desc().split())[:200]


def _check_contract(trt: TrtModule, network: tensorrt.INetworkDefinition, name: str) -> None:
    types = trt.api.DataType
    inputs = [network.get_input(k) for k in range(network.num_inputs)]
    outputs = [network.get_output(k) for k in range(network.num_outputs)]
    found = [(t.name, t.dtype, tuple(t.shape)) for t in (*inputs, *outputs)]
    width = found[2][2][-1] if len(found) == 3 and found[2][2] else 0
    expected = [
        (INPUT_NAME, types.UINT8, (-1, MOSAIC_SIDE, MOSAIC_SIDE, 3)),
        (LOGIT_NAME, types.FLOAT, (-1,)),
        (EMBEDDING_NAME, types.FLOAT, (-1, max(width, 1))),
    ]
    if found != expected:
        raise SpecError(f"{name}: found {_signature(found)}, expected {_signature(expected)}")


def _signature(tensors: list[tuple[str, tensorrt.DataType, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype.name} {list(shape)}" for name, dtype, shape in tensors)


def _allow_any_attention(trt: TrtModule, network: tensorrt.INetworkDefinition) -> None:
    """Lets ONNX Attention fall back to plain kernels; else a missing fused kernel ends the build."""
    if not hasattr(trt.api.LayerType, "ATTENTION_INPUT") or not hasattr(trt.api, "IAttentionInputLayer"):
        return
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        if layer.type == trt.api.LayerType.ATTENTION_INPUT:
            _as_kind(layer, trt.api.IAttentionInputLayer).attention.decomposable = True


def _as_kind(layer: tensorrt.ILayer, kind: type[LayerT]) -> LayerT:
    """Returns the layer with the members of its own class: TensorRT gives every layer out as an ILayer."""
    layer.__class__ = kind
    return cast(LayerT, layer)
