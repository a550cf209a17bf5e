"""python -m export doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from export.doctor.facts import Fact
    from export.doctor.findings import Finding
    from export.doctor.verdicts import BackendRow


@click.command()
@click.option("--for", "wanted", metavar="BACKEND[:build|:run]", help="exit 3 unless that works here")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def doctor(wanted: str | None, as_json: bool) -> None:
    """Tells what this machine can build and run, why not, and which of its versions are known to go wrong.

    BACKEND is onnxruntime:cpu, onnxruntime:cuda, tensorrt or tensorrt-rtx. With --for its row alone is
    printed, and the exit code is 0 if it can be built and run here, else 3; --for tensorrt-rtx:build asks
    about building alone.
    """
    from export.doctor.facts import gather
    from export.doctor.findings import findings_for
    from export.doctor.machine import Machine
    from export.doctor.verdicts import asked_row, judge

    asked = None if wanted is None else asked_row(wanted)
    facts = gather(Machine())
    rows, warnings = judge(facts), findings_for(facts)
    if asked is not None:
        rows = [row for row in rows if row.backend == asked[0]]
    if as_json:
        print_json(_report(facts, rows, warnings) if asked is None else {"schema": 1} | rows[0].to_json())
    else:
        _show(facts if asked is None else {}, rows, warnings if asked is None else [])
    if asked is None:
        return
    for part in asked[1]:
        verdict = rows[0].verdict(part)
        if not verdict.able:
            raise MissingDependencyError(f"{asked[0]} cannot {part} here: {verdict.reason}")


def _report(facts: dict[str, Fact], rows: list[BackendRow], warnings: list[Finding]) -> dict[str, Any]:
    return {
        "schema": 1,
        "facts": {name: fact.to_json() for name, fact in facts.items()},
        "backends": [row.to_json() for row in rows],
        "warnings": [warning.to_json() for warning in warnings],
    }


def _show(facts: dict[str, Fact], rows: list[BackendRow], warnings: list[Finding]) -> None:
    from export.doctor.lines import fact_line

    for fact in facts.values():
        click.echo(f"{fact.name:<15} {fact_line(fact)}")
    if facts:
        click.echo()
    for row in rows:
        for part in ("build", "run"):
            verdict = row.verdict(part)
            click.echo(
                f"{row.backend:<17} {part:<5}  {'yes' if verdict.able else 'no ':<3}  {verdict.reason}"
            )
    for warning in warnings:
        click.echo(f"warning: {warning.line()}")
