"""From comparisons to checks that pass or fail, and to the hop that is to blame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from export.parity.forms.fp16_origin import fp16_differences
from export.parity.pictures.from_files import FilesForm
from export.parity.settings import GateLimits
from export.parity.statistics.binomial import images_needed
from export.parity.statistics.compare import WORST, HopReport
from export.parity.statistics.measures import Comparison
from export.parity.waterfall import COMPARED, FIRST, Hop
from runtime.errors import DgsNetError, MissingDependencyError
from runtime.names import printable_name, utf8_name

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
# What is no verdict on the model, but keeps a report from being a pass; the first that is found names it.
NOT_RUN, UNREADABLE, STOPPED = "not-run", "unreadable", "stopped"
ERRORS = (STOPPED, NOT_RUN, UNREADABLE)
PICTURES, UNREADABLE_PICTURES = "pictures", "unreadable pictures"
_NAMED = 20
ORIGIN = "the FP32 graph, rounded"
RUNS = "runs"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        hop: key of the hop that it belongs to.
        name: what was looked at.
        status: "passed", "failed", "skipped", or one of ``ERRORS``.
        text: what was found and what is allowed, or why it was skipped.
        is_own: whether a failure is this hop's own; against the first form it may have been handed down.
    """

    hop: str
    name: str
    status: str
    text: str
    is_own: bool = True

    def line(self) -> str:
        """Returns the check as one line for a person."""
        status = "FAILED" if self.status == FAILED else self.status
        return f"{status:<7} {self.hop}: {self.name}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        return dict(vars(self)) | {"text": utf8_name(self.text)}


def status_of(checks: Iterable[Check]) -> str:
    """Returns the one word that a report's checks come to: "passed", "failed" or one of ``ERRORS``."""
    found = {check.status for check in checks}
    return next((status for status in (FAILED, *ERRORS) if status in found), PASSED)


def unreadable_check(unreadable: Sequence[tuple[str, str]], count: int, share: float) -> Check:
    """Returns whether few enough pictures could not be read; all that are read are compared in any case.

    Args:
        unreadable: those that could not, each with the reason.
        count: how many there are, readable or not.
        share: of them that may be unreadable.
    """
    text = f"{len(unreadable)} of {count:,} could not be read, allowed {share:g} of them"
    if unreadable:
        text += "; " + "; ".join(f"{printable_name(name)}: {reason}" for name, reason in unreadable[:_NAMED])
    if len(unreadable) > _NAMED:
        text += f"; and {len(unreadable) - _NAMED} more, listed by --json-file"
    # Divided, not multiplied: 29 of 100 is 0.29 exactly as it was typed, and 0.29 * 100 is below 29.
    is_good = len(unreadable) / max(count, 1) <= share
    return Check(PICTURES, UNREADABLE_PICTURES, PASSED if is_good else UNREADABLE, text)


def required(check: Check) -> Check:
    """Returns the check of a form that has to run: where it could not, it is none to skip."""
    if check.status == SKIPPED and check.name == RUNS:
        return dataclasses.replace(check, status=NOT_RUN)
    return check


def hop_checks(hop: Hop, limits: GateLimits) -> Iterator[Check]:
    """Yields the checks of one hop: against the form before, then against the first.

    Args:
        hop: what became of the form.
        limits: what is allowed.
    """
    if hop.status == FIRST:
        return
    if hop.status != COMPARED or hop.previous is None or hop.first is None:
        status = SKIPPED if hop.status == SKIPPED else FAILED
        yield Check(hop.key, RUNS, status, hop.reason)
        return
    yield from _comparison_checks(hop, hop.previous, limits, hop.precision)
    if hop.first.reference != hop.previous.reference:
        for check in _comparison_checks(hop, hop.first, limits, hop.coarsest):
            yield dataclasses.replace(check, is_own=False)


def _comparison_checks(hop: Hop, found: Comparison, limits: GateLimits, precision: str) -> Iterator[Check]:
    against = f"against {found.reference}"
    limit = limits.of(precision)

    def check(name: str, is_good: bool, text: str) -> Check:
        return Check(hop.key, f"{against}, {name}", PASSED if is_good else FAILED, text)

    yield check(
        "finite", not found.nonfinite, f"{found.nonfinite} of {found.count} logits are NaN or infinite"
    )
    largest = found.logit.largest
    if largest is not None:
        yield check(
            "max |dlogit|",
            largest <= limit.max_abs_logit,
            f"{largest:.3g} over {found.count} pictures, allowed {limit.max_abs_logit:g}",
        )
    if found.cosine is not None:
        yield check(
            "cosine of embeddings",
            found.cosine.smallest >= limit.min_cosine,
            f"1 - {1 - found.cosine.smallest:.1e} at least, allowed 1 - {1 - limit.min_cosine:.1e}",
        )
        if found.cosine.length is not None:
            # The relative error that the limit on cosines allows a vector; no second limit is needed.
            allowed = (2 * (1 - limit.min_cosine)) ** 0.5
            yield check(
                "length of embeddings",
                found.cosine.length <= allowed,
                f"differs by {found.cosine.length:.1e} of itself at most, allowed {allowed:.1e}",
            )
    ties = len(found.flips) - found.hard_flips
    yield check(
        "hard flips",
        found.hard_flips <= limits.max_hard_flips,
        f"{found.hard_flips} verdicts changed, allowed {limits.max_hard_flips} ({ties} ties beside them)",
    )
    yield _ap_check(hop, found, against, limits.max_ap_drop)
    if limits.max_flip_bound is not None:
        yield _bound_check(hop, found, against, limits.max_flip_bound)


def _ap_check(hop: Hop, found: Comparison, against: str, allowed: float) -> Check:
    name = f"{against}, AP"
    if found.ranking is None:
        return Check(hop.key, name, SKIPPED, "needs finite logits of labelled pictures of both classes")
    drop = found.ranking[0].ap - found.ranking[1].ap
    status = PASSED if drop <= allowed else FAILED
    return Check(
        hop.key,
        name,
        status,
        f"{found.ranking[0].ap:.6f} -> {found.ranking[1].ap:.6f}, drop allowed {allowed:g}",
    )


def _bound_check(hop: Hop, found: Comparison, against: str, allowed: float) -> Check:
    seen = len(found.flips) + found.nonfinite
    text = f"{seen} flips in {found.count}: at most {found.flip_bound:.3g} at 95 %, allowed {allowed:g}"
    is_good = found.flip_bound <= allowed
    if not is_good:
        text += f"; needs {images_needed(allowed, seen)} pictures with as many flips"
    return Check(hop.key, f"{against}, flip bound", PASSED if is_good else FAILED, text)


def file_checks(files: FilesForm) -> Iterator[Check]:
    """Yields what the file hop says besides its logits."""
    refused = f"{len(files.refused)} files that the gate could read"
    if files.refused:
        name, reason = files.refused[0]
        refused += f", first {printable_name(name)}: {reason}"
    yield Check(
        files.key, "the runtime reads what the gate reads", FAILED if files.refused else PASSED, refused
    )
    name = "mosaics byte by byte"
    if not files.mosaics_compared:
        yield Check(files.key, name, SKIPPED, "no file was read")
        return
    text = f"{len(files.differing)} of {files.mosaics_compared} files differ"
    if files.differing:
        place, difference = files.differing[0]
        text += f", first {printable_name(place)}: {difference}"
    yield Check(files.key, name, FAILED if files.differing else PASSED, text)


@runtime_checkable
class Watched(Protocol):
    """A form that remembers which parts of its graph gave infinity or NaN."""

    def overflows(self) -> tuple[tuple[str, int, int], ...]:
        """Returns (part of the graph, infinite values, NaN values) of each that had any, in graph order."""


def overflow_check(hop: str, watched: Watched) -> Check:
    """Returns whether every value inside a graph was finite: a logit can be, beside a block that was not."""
    found = watched.overflows()
    name = "finite in every block"
    if not found:
        return Check(hop, name, PASSED, "no value was infinite or NaN")
    part, infinite, nan = found[0]
    text = f"{len(found)} parts overflow, first {part} with {infinite} infinite and {nan} NaN values"
    return Check(hop, name, FAILED, text)


def origin_check(hop: str, fp32: Path, fp16: Path) -> Check:
    """Returns whether the FP16 graph is the FP32 graph, rounded."""
    try:
        differences = list(fp16_differences(fp32, fp16))
    except MissingDependencyError as err:
        return Check(hop, ORIGIN, SKIPPED, str(err))
    except DgsNetError as err:
        return Check(hop, ORIGIN, FAILED, str(err))
    if not differences:
        return Check(hop, ORIGIN, PASSED, "every node, edge and weight")
    more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
    text = f"{differences[0]}{more}; build the bundle again"
    return Check(hop, ORIGIN, FAILED, text)


def law_check(hop: str, report: HopReport) -> Check:
    """Returns a batch law as a check."""
    text = f"{difference_text(report)} against batch 1"
    return Check(hop, report.hop, PASSED if report.passed else FAILED, text)


def difference_text(report: HopReport) -> str:
    """Returns what differs and what is allowed, of both things that a report is judged by."""
    if report.max_abs_logit == WORST:
        found = "a logit is NaN or infinite"
    else:
        found = f"max |dlogit| {report.max_abs_logit:.3g}, allowed {report.max_allowed:g}"
    if report.min_cosine is not None:
        found += f"; cosine 1 - {1 - report.min_cosine:.1e}, allowed 1 - {1 - report.cosine_allowed:.1e}"
    return found


def blamed(hops: Sequence[Hop], checks: Sequence[Check]) -> str | None:
    """Returns the key of the hop to blame, None when none fails.

    It is the first of the chain that fails by itself: against the form before, or in a law of its own.
    Where every step is within its limit and only the sum is not, it is the first that is too far from the
    start.
    """
    failed = [check for check in checks if check.status == FAILED]
    for own_only in (True, False):
        wrong = {check.hop for check in failed if check.is_own or not own_only}
        for hop in hops:
            if hop.key in wrong:
                return hop.key
    return None
