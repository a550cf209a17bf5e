"""A summary of what TensorRT's engine inspector says, as a function of its JSON alone.

The inspector gives {"Layers": [...], "Bindings": [...]}; TensorRT 11 calls the second "I/O Tensors". A layer
is an object if the engine was built with detailed profiling verbosity, else its bare name.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from runtime.errors import SpecError

_FUSED = re.compile(
    r"_gemm_mha|fmha|flash_?attention|fused_?(?:multi_?head_?)?attention|\bmha\b", re.IGNORECASE
)
_FORMAT_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
# In this order: "BF16" and "BFloat16" must not count as what they end in.
_PRECISIONS = (
    ("bf16", re.compile(r"bf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half|float16", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8|float8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
    ("uint8", re.compile(r"uint8", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("int64", re.compile(r"int64", re.IGNORECASE)),
    ("int32", re.compile(r"int32", re.IGNORECASE)),
    ("bool", re.compile(r"bool", re.IGNORECASE)),
)
_SHOWN = 64


def layers_summary(information: object) -> dict[str, Any]:
    """Returns layers by precision and by type, and whether fused attention is among them.

    Args:
        information: the parsed JSON of ``get_engine_information``.

    Returns:
        layers (count), detailed (whether precisions were stated), by_precision (of a layer's first output),
        by_type, fused_attention {found, count, layers}, tensors (names of inputs and outputs).

    Raises:
        SpecError: it has no list of layers.
    """
    if not isinstance(information, dict) or not isinstance(information.get("Layers"), list):
        raise SpecError("engine information: found no list of Layers, expected the engine inspector's JSON")
    layers = information["Layers"]
    described = [layer for layer in layers if isinstance(layer, dict)]
    fused = [_layer_name(layer) for layer in layers if _is_fused_attention(layer)]
    tensors = information.get("Bindings") or information.get("I/O Tensors") or []
    return {
        "layers": len(layers),
        "detailed": bool(described) and len(described) == len(layers),
        "by_precision": _counted([_precision(layer) for layer in described]),
        "by_type": _counted([str(layer.get("LayerType", "unknown")) for layer in described]),
        "fused_attention": {"found": bool(fused), "count": len(fused), "layers": fused[:_SHOWN]},
        "tensors": [
            str(tensor.get("Name", tensor)) if isinstance(tensor, dict) else str(tensor) for tensor in tensors
        ],
    }


def _layer_name(layer: object) -> str:
    return str(layer.get("Name", "")) if isinstance(layer, dict) else str(layer)


def _is_fused_attention(layer: object) -> bool:
    if not isinstance(layer, dict):
        return bool(_FUSED.search(str(layer)))
    # Not its Metadata: that names the ONNX nodes, whatever became of them.
    return any(_FUSED.search(str(layer.get(key, ""))) for key in ("Name", "LayerType", "TacticName"))


def _precision(layer: dict[str, Any]) -> str:
    outputs = layer.get("Outputs")
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    if not isinstance(first, dict):
        return "none"
    for key in _FORMAT_KEYS:
        for precision, pattern in _PRECISIONS:
            if pattern.search(str(first.get(key, ""))):
                return precision
    return "unknown"


def _counted(names: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
