"""What the comparison of two bundles came to, as lines and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.against.allowed import AllowedChanges
from export.parity.against.changes import Change, Changes, Verdicts
from export.parity.against.sides import Difference, Side
from export.parity.checks import FAILED, PASSED, SKIPPED, Check, status_of
from export.parity.outcome import SCHEMA_VERSION, STATUS_WORDS
from export.parity.pictures.data_set import Picture
from export.parity.pictures.reading import Reading, Sample
from export.parity.statistics.binomial import images_for_rates, images_text, upper_bound
from runtime.names import printable_name, utf8_name

_SHOWN_CHANGES = 20


@dataclass(frozen=True)
class PairReport:
    """One backend of both bundles on the same pictures.

    Attributes:
        key: the new bundle's backend.
        title: both engines.
        pictures: those that could be read, N of them.
        old: answers of the old bundle, N of them; ``new`` likewise.
        new: answers of the new bundle.
        changes: what they come to.
        generators: the same by generator.
        changed: each picture with another verdict.
    """

    key: str
    title: str
    pictures: tuple[Picture, ...]
    old: Verdicts
    new: Verdicts
    changes: Changes
    generators: dict[str, Changes]
    changed: tuple[Change, ...]

    def sureness(self) -> str:
        """Returns how many verdicts may change of all, by those that were seen."""
        found = self.changes
        return (
            f"{found.changed} changed of {found.count:,}: at 95 % no more than {found.bound:.2%} change "
            f"(none in {found.count:,} would say {upper_bound(0, found.count):.2%}); pictures needed with "
            f"as many changes: {images_text(found.changed)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "backend": self.key,
            "engines": self.title,
            **self.changes.to_json(),
            "images_needed": images_for_rates(self.changes.changed),
            "generators": [{"name": utf8_name(k)} | v.to_json() for k, v in self.generators.items()],
            "changes": [change.to_json() for change in self.changed],
        }


@dataclass(frozen=True)
class AgainstReport:
    """The outcome of comparing two bundles.

    Attributes:
        old: the bundle that was used.
        new: the bundle that is to be used.
        differences: settings that are other ones now.
        pairs: the backends that were compared.
        checks: everything that was looked at.
        allowed: how many verdicts may change.
        unreadable: pictures that could not be read, each with the reason.
        reading: which files were accepted.
        sample: that the pictures were a part of what there is; None where they were all.
        golden: the mosaics that were looked at, where no files were.
        environment: versions and machine.
        command: words of the command line.
        seconds: all in all.
    """

    old: Side
    new: Side
    differences: tuple[Difference, ...]
    pairs: tuple[PairReport, ...]
    checks: tuple[Check, ...]
    allowed: AllowedChanges
    unreadable: tuple[tuple[str, str], ...]
    reading: Reading
    sample: Sample | None
    golden: NDArray[np.uint8] | None
    environment: dict[str, str]
    command: tuple[str, ...]
    seconds: float

    @property
    def status(self) -> str:
        """The one word for all of it, as of a gate."""
        return status_of(self.checks)

    def verdict(self) -> str:
        """Returns the verdict in one line."""
        found = [f"{pair.changes.changed} of {pair.changes.count:,} ({pair.key})" for pair in self.pairs]
        text = f"{', '.join(found) or 'none'} verdicts changed, allowed {self.allowed}"
        return "; ".join([f"{STATUS_WORDS[self.status]}: {text}", *self.remarks()])

    def remarks(self) -> list[str]:
        """Returns what a verdict must not leave out: a sample, pictures not read, what did not run."""
        found = []
        if self.golden is not None:
            found.append("only the new bundle's golden mosaics were looked at (--data takes pictures)")
        if self.sample is not None:
            found.append(f"pictures: {self.sample.text()}")
        if self.unreadable:
            found.append(f"{len(self.unreadable)} pictures could not be read")
        absent = [check.hop for check in self.checks if check.status == SKIPPED]
        if absent:
            found.append(f"did not run: {', '.join(absent)}")
        return found

    def settings_lines(self) -> list[str]:
        """Returns what differs between the two bundles beside their weights."""
        if self.old.manifest.digest == self.new.manifest.digest:
            return ["both bundles are the same one, byte by byte"]
        return [str(one) for one in self.differences] or [
            "decision, preprocessing, classes and backbone are the same"
        ]

    def lines(self) -> list[str]:
        """Returns the report for a terminal."""
        lines = [
            f"old {printable_name(str(self.old.path))} ({self.old.manifest.digest[:12]}), "
            f"new {printable_name(str(self.new.path))} ({self.new.manifest.digest[:12]})"
        ]
        lines += [f"        {line}" for line in self.settings_lines()]
        for pair in self.pairs:
            lines += self._pair_lines(pair)
        lines += [check.line() for check in self.checks if check.status != PASSED]
        lines += [f"        unreadable, left out: {printable_name(n)}: {r}" for n, r in self.unreadable]
        return [*lines, self.verdict()]

    def _pair_lines(self, pair: PairReport) -> list[str]:
        found = pair.changes
        is_bad = any(check.status == FAILED for check in self.checks if check.hop == pair.key)
        lines = [
            f"{'FAILED' if is_bad else 'passed':<7} {pair.title}: {found.changed} of {found.count:,} "
            f"verdicts changed ({found.split()}; split by chance p {found.chance:.2g}), |dlogit| max "
            f"{_number(found.logit.largest)}, median {_number(found.logit.p50)}, |dprobability| max "
            f"{_number(found.probability.largest)}"
        ]
        if found.truth is not None:
            lines.append(f"          {found.truth.line()}")
        if len(pair.generators) > 1:
            for name, one in pair.generators.items():
                truth = "" if one.truth is None else f"; {one.truth.line()}"
                lines.append(
                    f"          {printable_name(name)}: {one.changed} of {one.count:,} changed, |dlogit| max "
                    f"{_number(one.logit.largest)}{truth}"
                )
        for change in pair.changed[:_SHOWN_CHANGES]:
            lines.append(f"          CHANGED {printable_name(change.item)}: {change.line()}")
        if len(pair.changed) > _SHOWN_CHANGES:
            lines.append(
                f"          and {len(pair.changed) - _SHOWN_CHANGES} more; --json-file lists them all"
            )
        return [*lines, f"          {pair.sureness()}"]

    def to_json(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        return {
            "schema": SCHEMA_VERSION,
            "kind": "against",
            "status": self.status,
            "old": _side_json(self.old),
            "new": _side_json(self.new),
            "differences": [dict(vars(one)) for one in self.differences],
            "max_changed": {"count": self.allowed.count, "share": self.allowed.share},
            "pairs": [pair.to_json() for pair in self.pairs],
            "checks": [check.to_json() for check in self.checks],
            "reading": self.reading.to_json(),
            "sample": None if self.sample is None else self.sample.to_json(),
            "unreadable": [{"item": utf8_name(n), "reason": utf8_name(r)} for n, r in self.unreadable],
            "seconds": self.seconds,
            "environment": self.environment,
            "command": [utf8_name(word) for word in self.command],
        }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "bundle": utf8_name(str(side.path)),
        "digest": side.manifest.digest,
        "decision": side.manifest.decision.to_json(),
    }


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2e}"
