"""What a gate came to: the verdict, as lines and as JSON."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.checks import (
    ERRORS,
    FAILED,
    NOT_RUN,
    PASSED,
    RUNS,
    SKIPPED,
    STOPPED,
    UNREADABLE,
    Check,
    blamed,
    status_of,
)
from export.parity.pictures.reading import Reading, Sample
from export.parity.settings import GateLimits
from export.parity.statistics.binomial import images_for_rates, images_text, upper_bound
from export.parity.statistics.measures import Comparison
from export.parity.waterfall import COMPARED, FIRST, Hop, Waterfall
from export.versions import tool_versions
from runtime.decision import Decision
from runtime.machine import cuda_device
from runtime.names import printable_name, utf8_name

SCHEMA_VERSION = 3
STATUS_WORDS = {
    PASSED: "passed",
    FAILED: "FAILED",
    UNREADABLE: "UNREADABLE",
    NOT_RUN: "NOT RUN",
    STOPPED: "STOPPED",
}
_SHOWN_FLIPS = 20


@dataclass(frozen=True)
class GateReport:
    """The outcome of one gate.

    Attributes:
        waterfall: the chain with its logits.
        checks: everything that was looked at, in the order of the chain.
        limits: what was allowed.
        decision: the bundle's rule.
        digest: of the bundle's manifest; None while it is being built.
        unreadable: pictures that nothing could read, with the reason.
        borrowed: pictures whose decoding was not checked independently.
        refused: pictures that only the runtime could not read.
        environment: versions and machine.
        command: words of the command line.
        golden: the mosaics that were looked at, where no files were.
        reading: which files were accepted.
        sample: that the pictures were a part of what there is; None where they were all.
    """

    waterfall: Waterfall
    checks: tuple[Check, ...]
    limits: GateLimits
    decision: Decision
    digest: str | None
    unreadable: tuple[tuple[str, str], ...]
    borrowed: int
    refused: tuple[tuple[str, str], ...]
    environment: dict[str, str]
    command: tuple[str, ...]
    golden: NDArray[np.uint8] | None
    reading: Reading = field(default_factory=Reading)
    sample: Sample | None = None

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == FAILED]

    @property
    def not_passed(self) -> list[Check]:
        """The checks that keep the report from being a pass: those that failed, then what could not be."""
        return [*self.failed, *(check for check in self.checks if check.status in ERRORS)]

    @property
    def status(self) -> str:
        """The one word for all of it: "passed", "failed", "unreadable", "not-run" or "stopped"."""
        return status_of(self.checks)

    @property
    def passed(self) -> bool:
        """Whether nothing that could run has failed, and nothing that was asked for is missing."""
        return self.status == PASSED

    @property
    def blame(self) -> str | None:
        """Key of the hop where the chain breaks."""
        return blamed(self.waterfall.hops, self.checks) or (self.failed[0].hop if self.failed else None)

    @property
    def last(self) -> Hop | None:
        """The last hop that was compared: what a user of the bundle gets."""
        compared = [hop for hop in self.waterfall.hops if hop.status == COMPARED]
        return compared[-1] if compared else None

    def hop_status(self, hop: Hop) -> str:
        """Returns "passed", "failed", "skipped" or "first": the checks of a hop taken together."""
        if any(check.hop == hop.key for check in self.failed):
            return FAILED
        return PASSED if hop.status == COMPARED else hop.status

    def verdict(self) -> str:
        """Returns the verdict in one line."""
        counts = {
            status: sum(c.status == status for c in self.checks) for status in (PASSED, FAILED, SKIPPED)
        }
        text = f"{counts[PASSED]} checks passed, {counts[FAILED]} failed, {counts[SKIPPED]} skipped"
        text += "".join(f"; {line}" for line in self.remarks())
        if self.failed:
            text += f"; the chain breaks at {self.blame}"
        return f"{STATUS_WORDS[self.status]}: {text}"

    def remarks(self) -> list[str]:
        """Returns what a verdict must not leave out: a sample, pictures not read, forms that did not run."""
        found = [] if self.sample is None else [f"pictures: {self.sample.text()}"]
        if self.unreadable:
            kind = "allowed" if self.status != UNREADABLE else "too many"
            found.append(f"{len(self.unreadable)} pictures could not be read ({kind})")
        absent = [hop.title for hop in self.waterfall.hops if hop.status == SKIPPED]
        if absent:
            found.append(f"did not run: {', '.join(absent)}")
        return found

    def summary(self) -> list[str]:
        """Returns the chain, what failed and the verdict, for the log of a build."""
        lines = [line for hop in self.waterfall.hops for line in _hop_lines(hop, self.hop_status(hop))]
        return [*lines, *(check.line() for check in self.failed), self.verdict()]

    def lines(self) -> list[str]:
        """Returns the report for a terminal."""
        lines = [line for hop in self.waterfall.hops for line in _hop_lines(hop, self.hop_status(hop))]
        # A hop that did not run is a line already.
        lines += [check.line() for check in self.checks if check.status != PASSED and check.name != RUNS]
        lines += [f"        unreadable, left out: {printable_name(n)}: {r}" for n, r in self.unreadable]
        if self.sample is not None:
            lines.append(f"        looked at {self.sample.text()}: each generator and label by its share")
        if self.borrowed:
            lines.append(
                f"        {self.borrowed} pictures are of a rare kind (HEIC, Lab, 32-bit, cut off): their "
                "decoding is the runtime's own here too, and not checked"
            )
        last = self.last
        if last is not None and last.first is not None:
            lines += [f"        {line}" for line in bound_lines(last.first)]
        return [*lines, self.verdict()]

    def to_json(self) -> dict[str, Any]:
        """Returns what ``--json`` prints and parity.json stores."""
        last = self.last
        return {
            "schema": SCHEMA_VERSION,
            "status": self.status,
            "blame": self.blame,
            "bundle_digest": self.digest,
            "count": len(self.waterfall.pictures),
            "decision": self.decision.to_json(),
            "limits": self.limits.to_json(),
            "hops": [_hop_json(hop) for hop in self.waterfall.hops],
            "checks": [check.to_json() for check in self.checks],
            "flip_bound": None if last is None or last.first is None else bound_json(last.first),
            "reading": self.reading.to_json(),
            "sample": None if self.sample is None else self.sample.to_json(),
            "unreadable": [{"item": utf8_name(n), "reason": utf8_name(r)} for n, r in self.unreadable],
            "not_independently_decoded": self.borrowed,
            "seconds": self.waterfall.seconds,
            "environment": self.environment,
            "command": [utf8_name(word) for word in self.command],
        }


def bound_json(found: Comparison) -> dict[str, Any]:
    """Returns what so many pictures say about the rate of flips, and how many would say more."""
    seen = len(found.flips) + found.nonfinite
    return {
        "flips": seen,
        "count": found.count,
        "upper_95": found.flip_bound,
        "images_needed": images_for_rates(seen),
    }


def bound_lines(found: Comparison) -> list[str]:
    """Returns the same for a person."""
    said = bound_json(found)
    none = upper_bound(0, found.count)
    return [
        f"{said['flips']} flips in {found.count} pictures: at 95 % no more than {found.flip_bound:.2%} flip "
        f"(none in {found.count} would say {none:.2%})",
        f"pictures needed with as many flips: {images_text(said['flips'])}",
    ]


def environment() -> dict[str, str]:
    """Returns versions and machine, as text."""
    device = cuda_device()
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpu": "none" if device is None else f"{device.name} ({device.target})",
    }
    return tool_versions() | machine


def _hop_lines(hop: Hop, status: str) -> list[str]:
    mark = "FAILED" if status == FAILED else status
    if hop.status == FIRST:
        return [f"{mark:<7} {hop.title}: what the others are compared with"]
    found = hop.previous
    if found is None:
        return [f"{mark:<7} {hop.title}: {printable_name(hop.reason)}"]
    cosine = "" if found.cosine is None else f", cosine 1 - {1 - found.cosine.smallest:.1e}"
    ranked = ""
    if found.ranking is not None:
        ranked = f", AP {found.ranking[0].ap:.4f} -> {found.ranking[1].ap:.4f}"
    spread = found.logit
    lines = [
        f"{mark:<7} {hop.title} against {found.reference}: {found.count} pictures, max |dlogit| "
        f"{_number(spread.largest)}, mean {_number(spread.mean)}, p50 {_number(spread.p50)}, "
        f"p99 {_number(spread.p99)}{cosine}{ranked}, {len(found.flips)} flips, {found.hard_flips} of them "
        f"hard ({found.flips_at_half} at 0.5)"
    ]
    for flip in found.flips[:_SHOWN_FLIPS]:
        kind = "tie " if flip.tie else "FLIP"
        lines.append(
            f"          {kind} {printable_name(flip.item)}: {flip.reference_logit:.4f} -> {flip.logit:.4f}, "
            f"margin {flip.margin:.4f}"
        )
    if len(found.flips) > _SHOWN_FLIPS:
        lines.append(f"          and {len(found.flips) - _SHOWN_FLIPS} more; --json-file lists them all")
    return lines


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2e}"


def _hop_json(hop: Hop) -> dict[str, Any]:
    return {
        "hop": hop.key,
        "title": hop.title,
        "precision": hop.precision,
        "status": hop.status,
        "reason": utf8_name(hop.reason),
        "seconds": hop.seconds,
        "previous": None if hop.previous is None else hop.previous.to_json(),
        "first": None if hop.first is None else hop.first.to_json(),
    }
