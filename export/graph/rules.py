"""What a graph of ours must look like node by node; a rule that is broken is named with its node.

These are rules about what ``export/graph`` writes. An ONNX file of somebody else follows the graph contract
(``export/onnx_checks.py``) and may be built in any way.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from runtime.errors import SpecError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MOST_NODES_A_BLOCK = 30
# What a tracer leaves of a dynamic batch. The class token is picked by the graph's one Gather, in pool/.
NOT_IN_BLOCKS = frozenset({"Shape", "Gather", "Slice"})
NOWHERE = frozenset({"Shape", "Slice", "Expand", "ConstantOfShape", "If", "Loop", "Scan", "Constant"})

_NAME = re.compile(r"(?:(preprocess|stem|pool|projection|head)|block_(0|[1-9]\d*))(?:/[a-z0-9_.]+)+")
_NORMS_A_BLOCK = 2
_LAYER_SCALE = ("/attention/layer_scale", "/mlp/layer_scale")


def check_rules(model: ModelProto) -> int:
    """Returns the number of blocks of a graph that keeps every rule.

    Every node is named by block and part, each name once; blocks are numbered from 0; a block has at most 30
    nodes besides LayerScale, two of them LayerNormalization, and none of Shape, Gather and Slice; no node
    computes a shape.

    Raises:
        SpecError: the first rule that is broken.
    """
    blocks: dict[int, list[NodeProto]] = {}
    for node in model.graph.node:
        match = _NAME.fullmatch(node.name)
        if match is None:
            raise SpecError(
                f"graph node {node.name!r} ({node.op_type}): expected a name such as block_3/attention/scores"
            )
        if node.op_type in NOWHERE:
            raise SpecError(f"graph node {node.name}: found {node.op_type}, expected no node of that kind")
        if match[2] is not None:
            blocks.setdefault(int(match[2]), []).append(node)
    twice = [name for name, count in Counter(node.name for node in model.graph.node).items() if count > 1]
    if twice:
        raise SpecError(f"graph: found two nodes named {twice[0]!r}, expected each name once")
    if sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise SpecError(f"graph: found blocks {sorted(blocks)}, expected them numbered from 0")
    for index, nodes in sorted(blocks.items()):
        _check_block(f"block_{index}", nodes)
    return len(blocks)


def _check_block(name: str, nodes: list[NodeProto]) -> None:
    kinds = Counter(node.op_type for node in nodes)
    odd = sorted(NOT_IN_BLOCKS & set(kinds))
    if odd:
        raise SpecError(f"{name}: found {odd[0]}, expected none of {', '.join(sorted(NOT_IN_BLOCKS))}")
    # CLIP's own towers have no LayerScale; those that do have two nodes more.
    count = sum(not node.name.endswith(_LAYER_SCALE) for node in nodes)
    if count > MOST_NODES_A_BLOCK:
        raise SpecError(f"{name}: found {count} nodes, expected at most {MOST_NODES_A_BLOCK}")
    if kinds["LayerNormalization"] != _NORMS_A_BLOCK:
        raise SpecError(
            f"{name}: found {kinds['LayerNormalization']} LayerNormalization, expected {_NORMS_A_BLOCK}: one "
            "node keeps its statistics FP32"
        )
