"""What a repair costs and what it brings: sizes, latency of what runs here, differences and flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.parity.bisect.judge import blocks_label
from export.parity.bisect.latency import Latency
from export.parity.forms.form import FP16
from export.parity.outcome import GateReport


@dataclass(frozen=True)
class EngineChange:
    """One engine that was built from the FP16 graph.

    Attributes:
        before: its file before.
        after: its file after; "" where it was dropped.
        bytes_before: its size before.
        bytes_after: its size after; None where it was dropped.
        latency: of both.
    """

    before: str
    after: str
    bytes_before: int
    bytes_after: int | None
    latency: Latency

    def line(self) -> str:
        """Returns it as one line for a person."""
        if self.bytes_after is None:
            return f"{self.before}: dropped; build it again on its machine"
        return f"{self.after}: {_mib(self.bytes_before)} -> {_mib(self.bytes_after)}, {self.latency.line()}"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return dict(vars(self)) | {"latency": self.latency.to_json(), "after": self.after or None}


@dataclass(frozen=True)
class Hop:
    """The emulated FP16 hop in one gate, against the FP32 graph; None where nothing was finite."""

    status: str
    max_abs_logit: float | None
    flips: int
    hard_flips: int
    nonfinite: int
    count: int

    @classmethod
    def of(cls, report: GateReport) -> Hop:
        """Returns it from a gate that ran the hop or could not."""
        hop = next(one for one in report.waterfall.hops if one.key == FP16)
        found, status = hop.previous, report.hop_status(hop)
        if found is None:
            return cls(status, None, 0, 0, 0, 0)
        return cls(
            status, found.logit.largest, len(found.flips), found.hard_flips, found.nonfinite, found.count
        )

    def line(self) -> str:
        """Returns it in words."""
        if not self.count:
            return f"{self.status}, nothing was compared"
        largest = "none" if self.max_abs_logit is None else f"{self.max_abs_logit:.2e}"
        return (
            f"{self.status}: max |dlogit| {largest}, {self.flips} flips, {self.hard_flips} of them hard, "
            f"{self.nonfinite} not finite, {self.count} pictures"
        )


@dataclass(frozen=True)
class TradeOff:
    """A bundle before and after its repair.

    Attributes:
        blocks: kept FP32 before and after.
        graph_bytes: of the FP16 graph with its data, before and after.
        hops: the emulated FP16 hop before and after, on the same pictures.
        engines: what was built again.
        digest: of the repaired bundle.
    """

    blocks: tuple[tuple[int, ...], tuple[int, ...]]
    graph_bytes: tuple[int, int]
    hops: tuple[Hop, Hop]
    engines: tuple[EngineChange, ...]
    digest: str

    def lines(self) -> list[str]:
        """Returns the trade-off for a terminal."""
        before, after = self.graph_bytes
        lines = [
            f"repaired: {self._change()}",
            f"  FP16, emulated, before  {self.hops[0].line()}",
            f"  FP16, emulated, after   {self.hops[1].line()}",
            f"  FP16 graph: {_mib(before)} -> {_mib(after)} ({after / before:.2f} times)",
        ]
        lines += [f"  {change.line()}" for change in self.engines]
        if not self.engines:
            lines.append("  the bundle holds no engine built from the FP16 graph: no latency to compare")
        lines.append("  onnxruntime runs model.onnx in FP32: nothing changes there")
        return lines

    def _change(self) -> str:
        before, after = map(blocks_label, self.blocks)
        if before == after:
            return f"the FP16 graph was made again by the same policy, {after}"
        return f"{before} -> {after}"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "status": "repaired",
            "blocks": {"before": list(self.blocks[0]), "after": list(self.blocks[1])},
            "graph_bytes": {"before": self.graph_bytes[0], "after": self.graph_bytes[1]},
            "fp16": {"before": dict(vars(self.hops[0])), "after": dict(vars(self.hops[1]))},
            "engines": [change.to_json() for change in self.engines],
            "bundle_digest": self.digest,
        }


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
