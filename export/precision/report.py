"""What a conversion to FP16 did, read from the graph that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.precision.policy import PrecisionPolicy


@dataclass(frozen=True)
class PrecisionReport:
    """What the conversion did.

    Attributes:
        fp16_share: of the weighted nodes that the policy does not keep FP32.
        weighted_nodes: MatMul, Gemm and Conv nodes, all of them.
        weighted_fp32: those of them whose output is FP32.
        weighted_kept_by_user: those that ``--fp32-blocks`` or ``--fp32-layers`` keep FP32.
        fp32_nodes: nodes of any kind that the policy kept.
        casts: Cast nodes in the graph, those of the source included.
        flushed_weights: numbers that were not 0 in FP32 and are in FP16.
        policy: what was asked for.
    """

    fp16_share: float
    weighted_nodes: int
    weighted_fp32: int
    weighted_kept_by_user: int
    fp32_nodes: int
    casts: int
    flushed_weights: int
    policy: PrecisionPolicy

    @property
    def fp16_share_of_all(self) -> float:
        """FP16 share of all weighted nodes, those kept FP32 included."""
        return 1 - self.weighted_fp32 / self.weighted_nodes if self.weighted_nodes else 0.0

    def line(self) -> str:
        """Returns the conversion as one line for a person; what the user kept FP32 is named."""
        kept = self.policy.kept_by_user()
        own = f"; kept FP32 as asked: {kept} ({self.weighted_kept_by_user} weighted layers)" if kept else ""
        return (
            f"{100 * self.fp16_share:.1f} % of weighted layers in FP16 ({100 * self.fp16_share_of_all:.1f} % "
            f"of all {self.weighted_nodes}), {self.casts} casts{own}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a manifest stores; ``fp16_share`` counts what the policy lets be FP16."""
        return {
            "fp16_share": self.fp16_share,
            "fp16_share_of_all": self.fp16_share_of_all,
            "weighted_nodes": self.weighted_nodes,
            "weighted_fp32": self.weighted_fp32,
            "weighted_kept_by_user": self.weighted_kept_by_user,
            "flushed_weights": self.flushed_weights,
            "policy": self.policy.to_json(),
        }
