"""The report of the overflow guard: headroom of every part of the graph, as a table, JSON and a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from export.precision.policy import FP16_LARGEST
from runtime.errors import GateFailedError


@dataclass(frozen=True)
class PartHeadroom:
    """One part of the graph, such as ``block_3`` or ``stem``.

    Attributes:
        part: its name.
        largest: largest |activation| in the FP32 graph, of the tensors that the FP16 graph holds in FP16; of
            all when it holds none of them so.
        node: where that was.
        fp16_tensors: how many computed tensors are held in FP16; 0 means that the part stays FP32.
        infinite: infinite values in the emulation.
        nan: NaN values in the emulation.
    """

    part: str
    largest: float
    node: str
    fp16_tensors: int
    infinite: int
    nan: int

    @property
    def headroom(self) -> float | None:
        """65504 over ``largest``; below 1 it does not fit. None where nothing is FP16, or all is 0."""
        return FP16_LARGEST / self.largest if self.fp16_tensors and self.largest > 0 else None

    @property
    def bits(self) -> float | None:
        """How many times ``largest`` can double within FP16; negative when it does not fit."""
        return None if self.headroom is None else math.log2(self.headroom)

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "part": self.part,
            "largest": self.largest,
            "node": self.node,
            "fp16_tensors": self.fp16_tensors,
            "headroom": self.headroom,
            "bits": self.bits,
            "infinite": self.infinite,
            "nan": self.nan,
        }


@dataclass(frozen=True)
class Overflow:
    """The first value that FP16 could not hold.

    Attributes:
        part: the part of the graph that made it.
        node: the node after which it was seen; a Cast where a value leaves an FP32 part.
        infinite: infinite values of that node's result.
        nan: its NaN values.
        true_largest: largest magnitude of the same tensor in the FP32 graph.
        advice: command-line options that keep FP32 what has to be.
    """

    part: str
    node: str
    infinite: int
    nan: int
    true_largest: float
    advice: str

    def line(self) -> str:
        """Returns the finding as one line for a person."""
        return (
            f"FP16 overflow, first in {self.part}, node {self.node}: found {self.infinite} infinite and "
            f"{self.nan} NaN values (FP32 reaches {self.true_largest:.4g}), expected at most "
            f"{FP16_LARGEST:g}; keep it FP32 with {self.advice}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return dict(vars(self))


@dataclass(frozen=True)
class OverflowReport:
    """Outcome of the overflow guard.

    Attributes:
        count: mosaics that were run.
        parts: every part of the graph, in its order.
        first: the first overflow; None when there is none.
        kept_by_user: what the user's policy keeps FP32, as text; "" for nothing.
    """

    count: int
    parts: tuple[PartHeadroom, ...]
    first: Overflow | None
    kept_by_user: str

    @property
    def passed(self) -> bool:
        """Whether every FP16 value was a finite number."""
        return self.first is None

    def require(self) -> None:
        """Refuses a graph that overflows.

        Raises:
            GateFailedError: a value was infinite or NaN; the message names the node and what to do.
        """
        if self.first is not None:
            raise GateFailedError(self.first.line())

    def line(self) -> str:
        """Returns the outcome as one line for a person."""
        if self.first is not None:
            return f"FAILED  {self.first.line()}"
        tight = [(part.headroom, part) for part in self.parts if part.headroom is not None]
        if not tight:
            return f"passed  FP16 range: {self.count} mosaics, no activation other than 0 in FP16"
        headroom, part = min(tight, key=lambda pair: pair[0])
        return (
            f"passed  FP16 range: {self.count} mosaics, largest |activation| {part.largest:.4g} in "
            f"{part.node}, {headroom:.1f} times below {FP16_LARGEST:g}"
        )

    def table(self) -> list[str]:
        """Returns the parts as lines of a table for a person."""
        rows = [("part", "largest |x|", "headroom", "bits", "inf", "NaN", "largest in")]
        for part in self.parts:
            known = part.headroom is not None and part.bits is not None
            rows.append(
                (
                    part.part,
                    f"{part.largest:.4g}",
                    f"{part.headroom:.4g}x" if known else "-",
                    f"{part.bits:.1f}" if known else "-",
                    str(part.infinite),
                    str(part.nan),
                    part.node if part.fp16_tensors else f"{part.node} (stays FP32)",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, 6) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        if self.kept_by_user:
            lines.append(f"kept FP32 as asked: {self.kept_by_user}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores; every number in it is finite."""
        return {
            "status": "passed" if self.passed else "failed",
            "count": self.count,
            "limit": FP16_LARGEST,
            "kept_by_user": self.kept_by_user,
            "parts": [part.to_json() for part in self.parts],
            "first_overflow": None if self.first is None else self.first.to_json(),
        }
