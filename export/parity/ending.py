"""What a finished report means to whoever runs the gate: the error of its status, with its exit code."""

from __future__ import annotations

from collections.abc import Sequence

from export.parity.checks import FAILED, NOT_RUN, STOPPED, UNREADABLE, Check, status_of
from runtime.errors import DataError, DgsNetError, GateFailedError, MissingDependencyError
from runtime.names import printable_name


def require_passed(checks: Sequence[Check], unreadable: Sequence[tuple[str, str]] = ()) -> None:
    """Refuses a report that is no pass.

    Args:
        checks: of the report.
        unreadable: pictures that could not be read, each with the reason.

    Raises:
        GateFailedError: a check failed.
        MissingDependencyError: a form that had to run could not.
        DataError: more pictures than allowed could not be read.
    """
    status = status_of(checks)
    first = next((check for check in checks if check.status == status), None)
    if status == FAILED and first is not None:
        count = sum(check.status == FAILED for check in checks)
        raise GateFailedError(f"parity: {count} checks failed, first: {first.line()}")
    if status == NOT_RUN:
        absent = [check for check in checks if check.status == NOT_RUN]
        reasons = "; ".join(f"{check.hop}: {check.text}" for check in absent)
        raise MissingDependencyError(f"--require-all: {len(absent)} hops could not run ({reasons})")
    if status == UNREADABLE and unreadable:
        name, reason = unreadable[0]
        raise DataError(
            f"parity: {len(unreadable)} pictures could not be read, more than --max-unreadable allows, first "
            f"{printable_name(name)}: {reason}"
        )


def stopped_check(hop: str, err: DgsNetError) -> Check:
    """Returns what ended a part of the work before it was done, as a check."""
    return Check(hop, "comes to its end", STOPPED, str(err))
