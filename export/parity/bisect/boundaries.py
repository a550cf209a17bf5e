"""The tensors that cut a graph into its parts: what each part hands to the next.

Parts are known by the names of their nodes; a boundary is then a tensor, so that nodes without a name of
their own, such as those that somebody put in by hand, belong to the part whose result depends on them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.onnx_files import inferred_types, require_onnx
from export.precision.blocks import blocks_of, part_of
from runtime.errors import SpecError
from runtime.spec import EMBEDDING_NAME, LOGIT_NAME

if TYPE_CHECKING:
    from onnx import ModelProto

PREPROCESS, PATCHES, STEM, POOL, PROJECTION, HEAD = (
    "preprocess", "patch_embedding", "stem", "pool", "projection", "head",
)  # fmt: skip


@dataclass(frozen=True)
class Boundary:
    """The result of one part.

    Attributes:
        name: of the part: "preprocess", "patch_embedding", "stem" (positions and ln_pre), "block_<n>",
            "pool" (class token and ln_post), "projection" (the embedding) or "head" (the logit).
        tensor: that holds it, in a FP16 graph before any cast.
    """

    name: str
    tensor: str


def boundaries_of(model: ModelProto) -> list[Boundary]:
    """Returns the boundaries of an FP32 or FP16 graph that follows the contract, in its order.

    A part that the graph does not have is left out; a graph needs blocks.

    Raises:
        SpecError: no node is named ``block_<number>/...``.
        EngineBuildError: the types of the graph do not fit together.
    """
    graph = _Reading(model)
    names = [node.name for node in model.graph.node]
    blocks = blocks_of(names)
    if not blocks:
        raise SpecError(
            f"graph: found no node named block_<number>/... among {len(names)}, expected the names of a "
            "transformer's blocks; export it again with this version"
        )
    found: list[tuple[str, str | None]] = []
    conv = next((node for node in model.graph.node if node.op_type == "Conv"), None)
    if conv is not None:
        found += [(PREPROCESS, graph.before_casts(conv.input[0])), (PATCHES, conv.output[0])]
    found.append((STEM, graph.input_of(f"block_{blocks[0]}")))
    found += [(f"block_{number}", graph.result_of(f"block_{number}")) for number in blocks]
    found.append((POOL, graph.result_of(POOL)))
    found += [(PROJECTION, graph.before_casts(EMBEDDING_NAME)), (HEAD, LOGIT_NAME)]
    boundaries: dict[str, Boundary] = {}
    for name, tensor in found:
        if tensor is not None:
            boundaries.setdefault(tensor, Boundary(name, tensor))
    return list(boundaries.values())


class _Reading:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, model: ModelProto) -> None:
        kinds = require_onnx().TensorProto
        self._floats = {
            name for name, kind in inferred_types(model).items() if kind in (kinds.FLOAT, kinds.FLOAT16)
        }
        self._nodes = list(model.graph.node)
        self._makers = {name: k for k, node in enumerate(self._nodes) for name in node.output}
        self._readers: defaultdict[str, list[int]] = defaultdict(list)
        for k, node in enumerate(self._nodes):
            for name in node.input:
                self._readers[name].append(k)

    def before_casts(self, tensor: str) -> str:
        """Returns the tensor that casts between floating-point types made this one of."""
        maker = self._makers.get(tensor)
        while maker is not None and self._nodes[maker].op_type == "Cast":
            source = self._nodes[maker].input[0]
            if source not in self._floats:
                break
            tensor, maker = source, self._makers.get(source)
        return tensor

    def result_of(self, part: str) -> str | None:
        """Returns the last tensor of a part that something outside of it reads."""
        results = [
            name
            for node in self._nodes
            if part_of(node.name) == part
            for name in node.output
            if name in self._floats and any(part_of(self._nodes[k].name) != part for k in self._readers[name])
        ]
        return results[-1] if results else None

    def input_of(self, part: str) -> str | None:
        """Returns the last tensor that a block reads and that was made before the block begins."""
        begin = next(k for k, node in enumerate(self._nodes) if part_of(node.name) == part)
        read = {
            self.before_casts(name)
            for node in self._nodes
            if part_of(node.name) == part
            for name in node.input
            if name in self._floats
        }
        made = [name for name in read if self._makers.get(name, begin) < begin]
        return max(made, key=self._makers.__getitem__, default=None)
