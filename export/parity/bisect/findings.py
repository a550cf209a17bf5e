"""What looking for the place came to: drift of both hops and the set of blocks, as lines, JSON and bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.parity.bisect.drift import HopDrift
from export.parity.bisect.faults import NOT_RUN
from export.parity.bisect.judge import Evaluation, blocks_label
from export.parity.checks import FAILED, PASSED, SKIPPED, Check
from export.parity.page.document import BlockDrift
from export.precision.blocks import number_list
from runtime.names import utf8_name

PASSES, FILE, FOUND, UNFINISHED, NOT_FP16, NOT_SEARCHED = (
    "passes", "file", "found", "unfinished", "not-fp16", "not-searched",
)  # fmt: skip
# What a part that is not finite is drawn at: beyond every finite one, and still on the axis.
_DRAWN_INFINITE = 100.0
_TITLES = {"onnx-fp32": "FP32 graph", "fp16-emulated": "FP16"}


@dataclass(frozen=True)
class Broken:
    """A hop whose parts could not be compared.

    Attributes:
        hop: key of the form.
        reason: why, in one line.
        part: the part that is at fault, where that is known; else "".
        how: what is wrong with the part.
    """

    hop: str
    reason: str
    part: str
    how: str = NOT_RUN

    def line(self) -> str:
        """Returns it as one line for a person."""
        where = f"first at fault {self.part}, {self.how}" if self.part else "its parts were not compared"
        return f"{self.hop}: {where}: {self.reason}"


@dataclass(frozen=True)
class Proposal:
    """The blocks to keep FP32.

    Attributes:
        status: "passes" (the bundle's FP16 graph passes as it is), "file" (a fresh conversion by the bundle's
            own policy passes: the file is at fault, not its precision), "found" (a set that is 1-minimal),
            "unfinished" (a set that passes; evaluations ran out), "not-fp16" (with as many blocks FP32 as can
            be it still fails) or "not-searched".
        reason: in words.
        blocks: the set; empty where there is none.
        evaluations: all graphs that were judged, in their order.
        removals: for each block of the set, what the set without it came to; None where that was not tried.
    """

    status: str
    reason: str
    blocks: tuple[int, ...]
    evaluations: tuple[Evaluation, ...]
    removals: tuple[tuple[int, Evaluation | None], ...]

    @property
    def is_repair(self) -> bool:
        """Whether rebuilding with this set gives a graph that passed."""
        return self.status in (FILE, FOUND, UNFINISHED)

    @property
    def is_minimal(self) -> bool:
        """Whether every set with one block less was judged and fails."""
        return self.status == FOUND and all(
            found is not None and not found.passed for _block, found in self.removals
        )

    def lines(self) -> list[str]:
        """Returns the proposal for a terminal."""
        lines = [f"FP32 blocks: {self.reason}"]
        for block, found in self.removals:
            without = f"  without block {block}: "
            lines.append(without + ("not tried" if found is None else found.line()))
        if self.status in (FOUND, UNFINISHED):
            words = number_list(self.blocks).replace(" ", "")
            lines.append(f"  to build so: --fp32-blocks {words}, or parity --repair")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "status": self.status,
            "reason": utf8_name(self.reason),
            "blocks": list(self.blocks),
            "minimal": self.is_minimal,
            "evaluations": [one.to_json() for one in self.evaluations],
            "removals": [
                {"block": block, "evaluation": None if found is None else found.to_json()}
                for block, found in self.removals
            ],
        }


@dataclass(frozen=True)
class BisectReport:
    """Where a bundle's chain breaks.

    Attributes:
        hops: the hops that were looked at part by part, or why one was not.
        proposal: the blocks to keep FP32.
        chosen: which pictures were looked at, in words.
        count: how many.
        blame: key of the hop where the gate says that the chain breaks; None where it passed.
    """

    hops: tuple[HopDrift | Broken, ...]
    proposal: Proposal
    chosen: str
    count: int
    blame: str | None = None

    @property
    def first(self) -> tuple[str, str] | None:
        """Hop and part of the first fault, in the order of the chain; None when no part is at fault."""
        for hop in self.hops:
            if isinstance(hop, Broken):
                if hop.part:
                    return hop.hop, hop.part
            elif hop.broken_reference:
                return hop.reference, hop.broken_reference
            elif hop.first is not None:
                return hop.hop, hop.first.part
        return None

    def verdict(self) -> str:
        """Returns what was found in one line."""
        broken = [hop.hop for hop in self.hops if isinstance(hop, Broken)]
        if self.first is not None:
            found = f"the first fault is in {self.first[1]} of {self.first[0]}"
        elif broken:
            found = f"the parts of {', '.join(broken)} could not be compared"
        elif not self.hops:
            found = "no two forms of the graph are here to compare"
        else:
            found = "no part of the graphs is at fault"
        if self.blame is None:
            return f"bisect: {found}; the gate passed"
        return f"bisect: {found}; the chain breaks at {self.blame}"

    def checks(self) -> tuple[Check, ...]:
        """Returns a check for each hop, as a report of tests lists them.

        What is over its limit fails where the gate failed; where the gate passed, nobody is held up by it.
        """
        found = []
        for hop in self.hops:
            is_at_fault = bool(hop.part if isinstance(hop, Broken) else hop.broken_reference or hop.first)
            status = FAILED if is_at_fault and self.blame is not None else PASSED
            if isinstance(hop, Broken) and not is_at_fault:
                status = SKIPPED
            found.append(Check(hop.hop, "part by part", status, hop.line(), is_own=False))
        return tuple(found)

    def lines(self) -> list[str]:
        """Returns the report for a terminal."""
        lines = [self.verdict(), self.chosen]
        for hop in self.hops:
            lines.append(hop.line())
            if isinstance(hop, HopDrift):
                lines += [f"  {line}" for line in hop.table()]
        return [*lines, *self.proposal.lines()]

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores; every number in it is finite or null."""
        first = self.first
        return {
            "verdict": self.verdict(),
            "count": self.count,
            "first": None if first is None else {"hop": first[0], "part": first[1]},
            "drift": [hop.to_json() for hop in self.hops if isinstance(hop, HopDrift)],
            "broken": [
                {"hop": hop.hop, "part": hop.part or None, "how": hop.how, "reason": utf8_name(hop.reason)}
                for hop in self.hops
                if isinstance(hop, Broken)
            ],
            "fp32_blocks": self.proposal.to_json(),
        }

    def page_rows(self) -> list[BlockDrift]:
        """Returns a bar for each part of each hop, for the page: its own error and the limit of that."""
        return [
            BlockDrift(
                block=f"{_TITLES.get(hop.hop, hop.hop)}, {part.part}"
                + ("" if part.own.error_max is not None else " (infinity or NaN)"),
                relative_error=_DRAWN_INFINITE if part.own.error_max is None else part.own.error_max,
                cosine=part.own.cosine_min,
                limit=part.limit,
            )
            for hop in self.hops
            if isinstance(hop, HopDrift)
            for part in hop.parts
        ]


def passes(reason: str) -> Proposal:
    """Returns a proposal that says why there is nothing to propose."""
    return Proposal(PASSES, reason, (), (), ())


def not_searched(reason: str) -> Proposal:
    """Returns a proposal that says why there is none."""
    return Proposal(NOT_SEARCHED, reason, (), (), ())


def found_reason(blocks: tuple[int, ...], *, is_minimal: bool) -> str:
    """Returns what is said of a set that passes."""
    label = blocks_label(blocks)
    if is_minimal:
        one = "that" if len(blocks) == 1 else "any one of them"
        return f"passes with {label}; without {one} it fails"
    return (
        f"passes with {label}; evaluations ran out before it was shown that none of them can be left out "
        "(--bisect-evaluations takes more)"
    )
