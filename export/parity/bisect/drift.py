"""Drift of every part between two forms of a model, and the first part that causes more than it may.

Two figures a part. Its *drift* is how far its result is from the reference's when both forms run from the
picture on: it grows over the blocks, and behind a fault every block has it. Its *own error* is how far its
result is from the reference's when it reads what the reference gave (``export.parity.bisect.forcing``): that
one is judged, so that a fault is found in the block that holds it, and slow growth over many sound blocks
blames none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.bisect.boundaries import HEAD, PATCHES, PROJECTION, Boundary
from export.parity.bisect.forcing import Values
from export.parity.bisect.statistics import Drift, DriftSums

# Least limit of an own error. Measured on sound graphs (tiny tower and ViT-B/32 with random weights, noise
# and smooth pictures; the trained demo), largest row: FP32 blocks 6.5e-7, norms 2.6e-7; FP16 blocks 1.1e-3.
# What it must tell apart: a LayerNorm epsilon of 1e-6 for 1e-5 in one block gives 1.8e-6.
FLOORS = {"fp32": 1e-6, "fp16": 2e-3}
# A part that makes much of little, as sharp attention does, makes more of rounding too. So each is run once
# more with its input off by half a unit in the last place, and may be off by so many times what that changes.
# Sound blocks: up to 2.1 times, with the weights of attention and MLP scaled by 10.
RESPONSES_ALLOWED = 5.0
LAST_PLACE = {"fp32": 2.0**-24, "fp16": 2.0**-11}
# Parts of the FP32 graph that are one long sum, which rounds at every step: (floor, responses allowed). The
# patch embedding adds 3072 products: 1.4e-6 with random weights, 1.3e-5 or 29 responses with the demo's
# band-pass ones.
_LONG_SUMS = {PATCHES: (1e-5, 100.0), PROJECTION: (1e-5, 100.0), HEAD: (1e-5, 100.0)}
# However badly a block is conditioned: beyond this it is not the rounding of its precision.
CEILINGS = {"fp32": 1e-4, "fp16": 5e-2}


@dataclass(frozen=True)
class PartDrift:
    """One part of a graph.

    Attributes:
        part: its name, such as "block_3".
        drift: of its result, both forms run from the picture on.
        own: of its result when it reads what the reference gave.
        limit: largest own error that is allowed here.
        largest_reference: largest |value| of the reference's result; infinity is possible.
        largest: largest |value| of the other form's result, infinities and NaN left out.
    """

    part: str
    drift: Drift
    own: Drift
    limit: float
    largest_reference: float
    largest: float

    @property
    def is_over(self) -> bool:
        """Whether its own error exceeds the limit."""
        return self.own.is_over(self.limit)

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores; every number in it is finite or null."""
        return {
            "part": self.part,
            "drift": self.drift.to_json(),
            "own": self.own.to_json(),
            "limit": self.limit,
            "over": self.is_over,
            "largest_reference": _finite(self.largest_reference),
            "largest": _finite(self.largest),
        }


@dataclass(frozen=True)
class HopDrift:
    """One hop, part by part.

    Attributes:
        hop: key of the form that is looked at, such as "onnx-fp32".
        reference: key of the form that it is compared with.
        precision: "fp32" or "fp16".
        count: pictures.
        parts: in the order of the graph.
        broken_reference: the first part of which the reference itself gives infinity or NaN; "" for none.
            What is found behind it says nothing of this hop.
    """

    hop: str
    reference: str
    precision: str
    count: int
    parts: tuple[PartDrift, ...]
    broken_reference: str = ""

    @property
    def first(self) -> PartDrift | None:
        """The first part whose own error exceeds its limit; None when none does."""
        return next((part for part in self.parts if part.is_over), None)

    @property
    def worst(self) -> PartDrift:
        """The part with the largest own error."""
        return max(self.parts, key=lambda part: (part.own.nonfinite, part.own.error_max or 0.0))

    def by_error(self) -> list[str]:
        """Returns the parts' names, largest own error first; those that were not finite lead in order."""
        broken = [part.part for part in self.parts if part.own.error_max is None]
        rest = [part for part in self.parts if part.own.error_max is not None]
        return broken + [part.part for part in sorted(rest, key=lambda part: -(part.own.error_max or 0.0))]

    def line(self) -> str:
        """Returns the finding as one line for a person."""
        first = self.first
        where = f"{self.reference} -> {self.hop}"
        if self.broken_reference:
            return (
                f"{where}: first at fault {self.broken_reference} of {self.reference}, which gives infinity "
                "or NaN itself"
            )
        if first is None:
            worst = self.worst
            return (
                f"{where}: no part causes more drift than its precision; the largest own error is "
                f"{_number(worst.own.error_max)} in {worst.part}, allowed {worst.limit:g}"
            )
        others = [part.part for part in self.parts if part.is_over and part is not first]
        also = f"; also {', '.join(others)}" if others else ""
        return (
            f"{where}: first at fault {first.part}, own error {_number(first.own.error_max)}, allowed "
            f"{first.limit:g}, cosine {first.own.cosine_min:.6f} at least{also}"
        )

    def table(self) -> list[str]:
        """Returns the parts as lines of a table for a person."""
        rows = [
            (
                "part",
                "own error",
                "p99",
                "drift",
                "p99",
                "min cosine",
                "mean cosine",
                "largest |x|",
                "limit",
                "",
            )
        ]
        for part in self.parts:
            rows.append(
                (
                    part.part,
                    _number(part.own.error_max),
                    _number(part.own.error_p99),
                    _number(part.drift.error_max),
                    _number(part.drift.error_p99),
                    f"{part.drift.cosine_min:.7f}",
                    f"{part.drift.cosine_mean:.7f}",
                    f"{part.largest_reference:.4g}",
                    f"{part.limit:.1e}",
                    "OVER" if part.is_over else "",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "hop": self.hop,
            "reference": self.reference,
            "precision": self.precision,
            "count": self.count,
            "first": None if self.first is None else self.first.part,
            "broken_reference": self.broken_reference or None,
            "parts": [part.to_json() for part in self.parts],
        }


class HopSums:
    """Collects one hop, batch by batch.

    Args:
        boundaries: of the form that is looked at.
        precision: "fp32" or "fp16": which limits hold.
    """

    def __init__(self, boundaries: Iterable[Boundary], precision: str) -> None:
        self._names = [boundary.name for boundary in boundaries]
        self._precision = precision
        self._drift = {name: DriftSums() for name in self._names}
        self._own = {name: DriftSums() for name in self._names}
        self._response = {name: DriftSums() for name in self._names}
        self._largest = {name: [0.0, 0.0] for name in self._names}
        self._broken = {name: False for name in self._names}
        self._count = 0

    def add(self, reference: Values, found: Values, own: Values) -> None:
        """Takes one batch: the results of all parts, by name."""
        for name, before, given in self._parts(reference):
            self._drift[name].add(name, before, found[name], given)
            self._own[name].add(name, before, own[name], given)
            self._broken[name] |= not bool(np.isfinite(before).all())
            for side, values in enumerate((before, found[name])):
                finite = np.abs(values[np.isfinite(values)])
                self._largest[name][side] = max(self._largest[name][side], float(finite.max(initial=0.0)))
        self._count += len(reference[self._names[-1]])

    def shaken(self, reference: Values) -> Values:
        """Returns what parts would read with each number off by half a unit in the last place."""
        draw = np.random.RandomState(0)
        step = LAST_PLACE[self._precision]
        return {
            name: (values * (1 + step * draw.choice((-1.0, 1.0), values.shape))).astype(np.float32)
            for name, values in reference.items()
        }

    def add_response(self, reference: Values, own: Values, shaken: Values) -> None:
        """Takes what the parts give for the input of ``shaken``, beside what they give for the reference."""
        for name, _before, given in self._parts(reference):
            self._response[name].add(name, own[name], shaken[name], given)

    def result(self, hop: str, reference: str) -> HopDrift:
        """Returns what was collected, between the forms of these keys."""
        parts = [
            PartDrift(
                name, self._drift[name].result(), self._own[name].result(), self._limit(name),
                *self._largest[name],
            )
            for name in self._names
        ]  # fmt: skip
        broken = next((name for name in self._names if self._broken[name]), "")
        return HopDrift(hop, reference, self._precision, self._count, tuple(parts), broken)

    def _limit(self, name: str) -> float:
        floor, allowed = FLOORS[self._precision], RESPONSES_ALLOWED
        if self._precision == "fp32":
            floor, allowed = _LONG_SUMS.get(name, (floor, allowed))
        response = self._response[name].result().error_max or 0.0
        return min(max(floor, allowed * response), CEILINGS[self._precision])

    def _parts(
        self, reference: Values
    ) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32] | None]]:
        given: NDArray[np.float32] | None = None
        for name in self._names:
            yield name, reference[name], given
            given = reference[name]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "inf/NaN" if value is None else f"{value:.2e}"
