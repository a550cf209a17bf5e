"""The part of ``python -m export parity`` that compares an older bundle with a newer one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from runtime.console import print_json
from runtime.errors import UsageError

if TYPE_CHECKING:
    from export.parity.pictures.reading import Reading
    from export.parity.report_files import ReportFiles

# What only the gate of one bundle can do anything with.
_OF_THE_GATE = (
    "checkpoint", "max_abs_logit", "max_abs_logit_fp32", "max_hard_flips", "max_ap_drop", "batch_size",
    "bisect", "repair", "drop_engines", "bisect_pictures", "bisect_evaluations",
)  # fmt: skip


def require_one_question(context: click.Context) -> None:
    """Refuses flags of the other question: of the gate beside --against, of --against without it.

    Raises:
        UsageError: one was given.
    """
    has_old = context.params["against"] is not None
    wrong = [
        "--" + name.replace("_", "-")
        for name in (_OF_THE_GATE if has_old else ("max_changed",))
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if wrong and has_old:
        raise UsageError(
            f"{', '.join(wrong)}: found beside --against, which compares two bundles by their verdicts "
            "alone; leave it out"
        )
    if wrong:
        raise UsageError("--max-changed: found without --against OLD, whose verdicts it counts; add it")


def run_against(
    bundle: Path,
    old: Path,
    data: Path | None,
    *,
    max_changed: str,
    max_flip_bound: float | None,
    backends: tuple[str, ...],
    reading: Reading,
    require_all: bool,
    command: tuple[str, ...],
    files: ReportFiles,
    as_json: bool,
) -> None:
    """Compares, writes the reports, and refuses what is over the limit.

    Raises:
        GateFailedError: more verdicts changed than allowed.
        MissingDependencyError, DataError, ManifestError, UsageError: as ``compare_bundles`` raises them.
    """
    from export.parity.against.allowed import AllowedChanges
    from export.parity.against.junit import against_junit
    from export.parity.against.page import against_page
    from export.parity.against.run import AgainstOptions, compare_bundles
    from export.parity.ending import require_passed

    options = AgainstOptions(
        backends=backends,
        allowed=AllowedChanges.parsed(max_changed),
        max_flip_bound=max_flip_bound,
        reading=reading,
        require_all=require_all,
        command=command,
    )
    report = compare_bundles(bundle, old, data, options=options)
    files.write(report.to_json, lambda: against_junit(report), lambda: against_page(report))
    if as_json:
        print_json(report.to_json())
    else:
        for line in report.lines():
            click.echo(line)
    require_passed(report.checks, report.unreadable)
