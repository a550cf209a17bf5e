"""The options of parity that say where a chain breaks and repair it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.errors import UsageError

if TYPE_CHECKING:
    from export.checkpoint import CheckpointSource
    from export.parity.bisect.findings import BisectReport
    from export.parity.bisect.trade_off import TradeOff
    from export.parity.gate import GateOptions
    from export.parity.outcome import GateReport

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def bisect_options(command: CommandT) -> CommandT:
    """Adds --bisect, --repair, --drop-engines, --bisect-pictures and --bisect-evaluations to a command."""
    options = (
        click.option(
            "--bisect", is_flag=True, help="find the first block that drifts, and the blocks to keep FP32"
        ),
        click.option(
            "--repair", is_flag=True, help="rebuild BUNDLE with those blocks FP32, if it then passes"
        ),
        click.option(
            "--drop-engines", is_flag=True, help="let --repair take out engines that cannot be built here"
        ),
        click.option(
            "--bisect-pictures",
            type=click.IntRange(1, 1024),
            default=128,
            show_default=True,
            help="pictures that --bisect looks at, at most",
        ),
        click.option(
            "--bisect-evaluations",
            type=click.IntRange(3, 10_000),
            default=64,
            show_default=True,
            help="FP16 graphs that --bisect tries, at most",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def require_sense(*, repair: bool, drop_engines: bool) -> None:
    """Refuses options that contradict each other, before anything is computed.

    Raises:
        UsageError: --drop-engines without --repair.
    """
    if drop_engines and not repair:
        raise UsageError("--drop-engines: found without --repair, which alone builds engines; add it")


def located(
    bundle: Path,
    checkpoint: CheckpointSource | None,
    report: GateReport,
    *,
    bisect: bool,
    repair: bool,
    drop_engines: bool,
    bisect_pictures: int,
    bisect_evaluations: int,
) -> BisectReport | None:
    """Returns where the chain breaks; None where nobody asked.

    Raises:
        UsageError: --drop-engines without --repair, or a repair could not be written.
        MissingDependencyError: a repair could not build an engine here.
    """
    require_sense(repair=repair, drop_engines=drop_engines)
    if not bisect and not repair:
        return None
    from export.parity.bisect.run import BisectOptions, bisect_bundle, is_fp16_at_fault

    if repair and is_fp16_at_fault(report):
        from export.parity.bisect.repair import require_repairable

        # Before the search, which takes long: it would be for nothing.
        require_repairable(bundle, drop_engines=drop_engines)
    options = BisectOptions(pictures=bisect_pictures, evaluations=bisect_evaluations)
    return bisect_bundle(bundle, checkpoint, report, options=options)


def repaired(
    bundle: Path,
    checkpoint: CheckpointSource | None,
    data: Path | None,
    report: GateReport,
    found: BisectReport,
    *,
    limits: dict[str, float | int | None],
    options: GateOptions,
    drop_engines: bool,
) -> tuple[GateReport, TradeOff] | None:
    """Repairs a bundle; None where its FP16 graph passes as it is and nothing is to be done.

    Raises:
        GateFailedError: no set of FP32 blocks repairs it, or the repaired bundle fails: nothing is written.
    """
    from export.parity.bisect.findings import PASSES
    from export.parity.bisect.repair import RepairOptions, repair_bundle

    if found.proposal.status == PASSES:
        return None
    asked = RepairOptions(limits=limits, gate=options, drop_engines=drop_engines)
    return repair_bundle(bundle, checkpoint, data, report, found.proposal, asked)
