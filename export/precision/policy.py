"""Which nodes of the FP16 graph compute in FP32: one object, for the conversion and for every engine.

Standard library only, so that a command line can be read without onnx.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.precision.blocks import block_pattern, blocks_of, number_list
from runtime.errors import GateFailedError, ManifestError, UsageError

FP16_LARGEST = 65504.0
WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class PrecisionPolicy:
    """Which nodes of the FP16 graph compute in FP32.

    LayerNormalization needs no entry: it stays one node, whose ``stash_type`` keeps its statistics FP32.

    Attributes:
        fp32_nodes: shell patterns of node names that this project keeps FP32; by default the scaling of
            pixels, the final embedding with its normalisation, and the classifier.
        fp32_blocks: numbers of transformer blocks, every node of which the user keeps FP32.
        fp32_layers: further shell patterns of node names, the user's.
        min_fp16_share: least share, 0..1, of the MatMul, Gemm and Conv nodes not kept FP32 by any of the
            three above that must come out as FP16.
    """

    fp32_nodes: tuple[str, ...] = ("preprocess/*", "projection/*", "head/*")
    min_fp16_share: float = 0.95
    fp32_blocks: tuple[int, ...] = ()
    fp32_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.min_fp16_share <= 1.0:
            raise UsageError(
                f"min_fp16_share: found {self.min_fp16_share}, expected a share above 0, at most 1"
            )
        if any(number < 0 for number in self.fp32_blocks):
            raise UsageError(
                f"fp32_blocks: found {number_list(self.fp32_blocks)}, expected block numbers from 0 on"
            )

    def keeps_fp32(self, node_name: str) -> bool:
        """Tells whether a node of this name computes in FP32."""
        return _matches(node_name, self.fp32_nodes) or self.user_keeps_fp32(node_name)

    def user_keeps_fp32(self, node_name: str) -> bool:
        """Tells whether ``fp32_blocks`` or ``fp32_layers`` keep a node of this name FP32."""
        blocks = [block_pattern(number) for number in self.fp32_blocks]
        return _matches(node_name, blocks) or _matches(node_name, self.fp32_layers)

    def check_names(self, node_names: Sequence[str]) -> None:
        """Refuses patterns and block numbers that stand for nothing in a graph.

        Raises:
            UsageError: a pattern matches no node, or a block number is none of the graph's.
        """
        for pattern in (*self.fp32_nodes, *self.fp32_layers):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in node_names):
                raise UsageError(
                    f"precision policy: {pattern!r} matches none of {len(node_names)} nodes (the first is "
                    f"{node_names[0]!r}); correct the pattern, or what should stay FP32 would not"
                )
        there = blocks_of(node_names)
        unknown = sorted(set(self.fp32_blocks) - set(there))
        if unknown:
            found = f"blocks {number_list(there)}" if there else "no node named block_<number>/..."
            raise UsageError(
                f"fp32_blocks: found {number_list(unknown)}, the graph has {found}; name some of those, or "
                "nodes by --fp32-layers"
            )

    def share(self, outputs: Sequence[tuple[str, bool]]) -> float:
        """Returns the FP16 share of (node name, is FP16) pairs without those kept FP32; 0 if none is left."""
        asked = [is_half for name, is_half in outputs if not self.keeps_fp32(name)]
        return sum(asked) / len(asked) if asked else 0.0

    def require(self, share: float, what: str) -> None:
        """Refuses a graph that computes less in FP16 than the policy asks for.

        Raises:
            GateFailedError: the share is below ``min_fp16_share``.
        """
        if share < self.min_fp16_share:
            raise GateFailedError(
                f"{what}: found {share:.1%} of MatMul, Gemm and Conv outputs in FP16, expected at least "
                f"{self.min_fp16_share:.1%}; convert model.onnx again, or name the nodes that may stay FP32"
            )

    def kept_by_user(self) -> str:
        """Returns what the user keeps FP32, for a person: "blocks 3, 7, nodes 'stem/*'"; "" for nothing."""
        parts = []
        if self.fp32_blocks:
            word = "block" if len(self.fp32_blocks) == 1 else "blocks"
            parts.append(f"{word} {number_list(self.fp32_blocks)}")
        if self.fp32_layers:
            parts.append("nodes " + ", ".join(repr(pattern) for pattern in self.fp32_layers))
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a manifest stores."""
        return {
            "fp32_nodes": list(self.fp32_nodes),
            "fp32_blocks": list(self.fp32_blocks),
            "fp32_layers": list(self.fp32_layers),
            "min_fp16_share": self.min_fp16_share,
        }

    @classmethod
    def from_json(cls, value: object) -> PrecisionPolicy:
        """Returns the policy that ``to_json`` wrote.

        Raises:
            ManifestError: it is something else.
        """
        expected = {"fp32_nodes", "fp32_blocks", "fp32_layers", "min_fp16_share"}
        if not isinstance(value, dict) or set(value) != expected:
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ManifestError(f"precision policy: found {found}, expected the keys {sorted(expected)}")
        share = value["min_fp16_share"]
        fits = isinstance(share, int | float) and not isinstance(share, bool)
        for key, kind in (("fp32_nodes", str), ("fp32_layers", str), ("fp32_blocks", int)):
            items = value[key]
            fits = fits and isinstance(items, list) and all(type(item) is kind for item in items)
        if not fits:
            raise ManifestError("precision policy: found values of other types, expected lists and a number")
        try:
            return cls(
                fp32_nodes=tuple(value["fp32_nodes"]),
                min_fp16_share=float(share),
                fp32_blocks=tuple(value["fp32_blocks"]),
                fp32_layers=tuple(value["fp32_layers"]),
            )
        except UsageError as err:
            raise ManifestError(f"precision policy: {err}") from err


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def policy_of_bundle(provenance: dict[str, Any]) -> PrecisionPolicy:
    """Returns what a bundle's FP16 graph was made with; one that does not say was made with the default.

    Args:
        provenance: of its manifest.

    Raises:
        ManifestError: it says something that is no policy.
    """
    stated = provenance.get("precision")
    if stated is None:
        return PrecisionPolicy()
    return PrecisionPolicy.from_json(stated.get("policy") if isinstance(stated, dict) else stated)
