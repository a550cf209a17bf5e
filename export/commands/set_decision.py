"""python -m export set-decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError
from runtime.names import printable_name

if TYPE_CHECKING:
    from export.decision import DecisionChange
    from runtime.decision import Decision

_SHOWN = 8


@click.command("set-decision")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threshold", type=float, metavar="P", help="probability from which on a picture is generated")
@click.option("--temperature", type=float, metavar="T", help="the logit is divided by it; 1 leaves it alone")
@click.option(
    "--uncertain",
    metavar="LO,HI",
    help="probabilities between which a verdict counts as uncertain; equal ends, such as 0.5,0.5, for none",
)
@click.option(
    "--from",
    "run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="take what train calibrate stored in RUN; the other options change that",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def set_decision(
    bundle: Path,
    threshold: float | None,
    temperature: float | None,
    uncertain: str | None,
    run: Path | None,
    as_json: bool,
) -> None:
    """Gives BUNDLE another decision; its graphs and engines stay as they are.

    What is not given stays. The manifest is replaced in one step and gets another digest: to predict --resume
    it is another bundle. Its provenance keeps the decision of the build and this command.
    """
    from export.decision import DecisionFlags, change_decision

    band = None if uncertain is None else _parsed_band(uncertain)
    change = change_decision(bundle, DecisionFlags(threshold, temperature, band, run))
    name = printable_name(str(bundle))
    if not change.is_origin_known:
        click.echo(
            f"note: {name} was built from an ONNX file: whether it holds the weights of {run} is not known",
            err=True,
        )
    if not change.is_run_calibrated:
        click.echo(
            f"note: {run} was never calibrated: its threshold and temperature were not fitted; "
            "python -m train calibrate fits them",
            err=True,
        )
    if as_json:
        print_json(change.to_json())
    else:
        _show(name, change)
    if change.is_written and change.has_reports:
        click.echo(
            f"note: the reports in {name}/parity are of the decision before; python -m export parity {name} "
            "judges by the new one",
            err=True,
        )


def _parsed_band(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as err:
        raise UsageError(f"--uncertain: found {text!r}, expected LO,HI such as 0.3,0.7") from err
    return low, high


def _show(name: str, change: DecisionChange) -> None:
    if not change.is_written:
        click.echo(f"{name}: already so, nothing was written")
    for label, old, new in (
        ("threshold", f"{change.before.threshold:.6g}", f"{change.after.threshold:.6g}"),
        ("temperature", f"{change.before.temperature:.6g}", f"{change.after.temperature:.6g}"),
        ("uncertain", _band(change.before), _band(change.after)),
        ("logit", f"{change.before.boundary_logit:.4f}", f"{change.after.boundary_logit:.4f}"),
    ):
        click.echo(f"{label:<12} {old} -> {new}" if old != new else f"{label:<12} {old}")
    before, after = change.verdicts
    changed = change.changed
    click.echo(f"{'golden':<12} {before.line()} -> {after.line()}")
    if changed:
        shown = ", ".join(map(str, changed[:_SHOWN])) + (", ..." if len(changed) > _SHOWN else "")
        click.echo(f"{'':<12} another verdict on {len(changed)} of {len(before.generated)} mosaics: {shown}")
    click.echo(f"{'digest':<12} {change.digest}")


def _band(decision: Decision) -> str:
    low, high = decision.uncertain
    return f"{low:.6g} to {high:.6g}" if low < high else "none"
