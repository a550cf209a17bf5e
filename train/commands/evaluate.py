"""python -m train evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import GateFailedError, UsageError
from runtime.names import printable_name, utf8_name


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--sources",
    type=click.Path(path_type=Path),
    help="JSON map, picture -> {source}; gives AP intervals, which resample sources and their pictures",
)
@click.option("--threshold", type=float, help="probability that counts as generated; default RUN's own")
@click.option("--min-ap", type=float, help="fail (exit 1) when a gated generator's AP is below this")
@click.option("--gate", "gated", multiple=True, help="generator that --min-ap applies to; default all")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table")
@verbosity_option
def evaluate(
    run: Path,
    data: Path,
    sources: Path | None,
    threshold: float | None,
    min_ap: float | None,
    gated: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Scores RUN on DATA/<generator>/{0_real,1_fake}/ at its stored threshold, or at --threshold."""
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"--threshold: found {threshold}, expected a probability above 0 and below 1")
    if min_ap is not None and not 0 <= min_ap <= 1:
        raise UsageError(f"--min-ap: found {min_ap}, expected 0 to 1")
    if gated and min_ap is None:
        raise UsageError(f"--gate: found {', '.join(gated)} without --min-ap; give the AP to reach")
    from train.evaluation import evaluate_run, mean_row

    rows, used = evaluate_run(run, data, sources=sources, device=device, threshold=threshold)
    unknown = set(gated) - {row.name for row in rows}
    if unknown:
        raise UsageError(f"--gate: found {sorted(unknown)}, expected some of {[row.name for row in rows]}")
    mean = mean_row(rows)
    if as_json:
        generators = [row.to_json() | {"name": utf8_name(row.name)} for row in rows]
        print_json({"schema": 1, "threshold": used, "generators": generators, "mean": mean})
    else:
        click.echo(
            f"{'generator':<20}{'n':>6}{'acc':>8}{'AP':>8}{'95 % interval':>18}{'r_acc':>8}{'f_acc':>8}"
        )
        for row in rows:
            interval = "-" if row.ap_low is None else f"{row.ap_low:.3f} to {row.ap_high:.3f}"
            click.echo(
                f"{printable_name(row.name):<20}{row.count:>6}{row.accuracy:>8.3f}{row.ap:>8.3f}{interval:>18}"
                f"{row.real_accuracy:>8.3f}{row.fake_accuracy:>8.3f}"
            )
        click.echo(
            f"{'mean':<26}{mean['accuracy']:>8.3f}{mean['ap']:>8.3f}{'':>18}"
            f"{mean['real_accuracy']:>8.3f}{mean['fake_accuracy']:>8.3f}"
        )
        click.echo(f"at a threshold of {used:.6g}")
    if min_ap is not None:
        low = [
            f"{printable_name(row.name)} {row.ap:.3f}"
            for row in rows
            if (row.name in gated or not gated) and not row.ap >= min_ap
        ]
        if low:
            raise GateFailedError(f"AP: found {', '.join(low)}, expected at least {min_ap}")
