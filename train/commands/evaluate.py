"""python -m train evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.console import logger, print_json, verbosity_option
from runtime.errors import EXIT_BAD_INPUT, EXIT_DONE, GateFailedError, UsageError
from runtime.files import write_atomically
from runtime.names import printable_name
from train.commands.options import scoring_options

if TYPE_CHECKING:
    from train.evaluation.evaluate import Evaluation
    from train.evaluation.generators import GeneratorScore

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--sources",
    type=click.Path(path_type=Path),
    help="JSON map, picture -> {source}; gives AP intervals, which resample sources and their pictures",
)
@click.option("--threshold", type=float, help="probability that counts as generated; default RUN's own")
@click.option(
    "--robustness", is_flag=True, help="score again after JPEG 95, 75, 50, WebP 80, resize 0.5 and blur 1.0"
)
@click.option(
    "--degrade",
    "degrade",
    multiple=True,
    metavar="NAME",
    help="score again after this change, such as jpeg:75, webp:80, resize:0.5 or blur:1.0; may be repeated",
)
@click.option("--min-ap", type=float, help="fail (exit 1) when a gated generator's AP is below this")
@click.option("--gate", "gated", multiple=True, help="generator that --min-ap applies to; default all")
@scoring_options
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of tables")
@click.option("--json-file", type=_FILE, help="the same JSON into a file")
@click.option("--csv-file", type=_FILE, help="every metric, one line per generator and degradation")
@click.option("--scores-file", type=_FILE, help="CSV with the logit and probability of every picture")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="ROC, calibration and score histograms as SVG",
)
@verbosity_option
def evaluate(
    run: Path,
    data: Path,
    sources: Path | None,
    threshold: float | None,
    robustness: bool,
    degrade: tuple[str, ...],
    min_ap: float | None,
    gated: tuple[str, ...],
    device: str,
    batch: int | None,
    max_corrupt: float | None,
    as_json: bool,
    json_file: Path | None,
    csv_file: Path | None,
    scores_file: Path | None,
    plots: Path | None,
) -> int:
    """Scores RUN on DATA/<generator>/{0_real,1_fake}/: at its stored threshold (or --threshold) and at 0.5.

    Exits with 2 when any picture could not be read; the others are scored. A resize shrinks a picture only
    until its shorter side has 32 pixels.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"--threshold: found {threshold}, expected a probability above 0 and below 1")
    if min_ap is not None and not 0 <= min_ap <= 1:
        raise UsageError(f"--min-ap: found {min_ap}, expected 0 to 1")
    if gated and min_ap is None:
        raise UsageError(f"--gate: found {', '.join(gated)} without --min-ap; give the AP to reach")
    for flag, place in (("--json-file", json_file), ("--csv-file", csv_file), ("--scores-file", scores_file)):
        if place is not None and not place.parent.is_dir():
            raise UsageError(f"{flag}: found no folder {place.parent}; make it first")
    if plots is not None:
        import matplotlib  # noqa: F401  # that it is missing must not show after an hour of scoring
    from train.data.degrade import ROBUSTNESS, degradation_from_name
    from train.evaluation.evaluate import evaluate_run
    from train.evaluation.plots import write_plots
    from train.evaluation.reports import csv_from_evaluation, csv_from_scores, json_from_evaluation

    names = (ROBUSTNESS if robustness else ()) + degrade
    degradations = list(dict.fromkeys(degradation_from_name(name) for name in names))
    evaluation = evaluate_run(
        run,
        data,
        sources=sources,
        device=device,
        threshold=threshold,
        batch=batch,
        max_corrupt=max_corrupt,
        degradations=degradations,
        gated=gated,
    )
    report = json_from_evaluation(evaluation)
    if as_json:
        print_json(report)
    else:
        _show_tables(evaluation)
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    if csv_file is not None:
        write_atomically(csv_file, csv_from_evaluation(evaluation).encode())
    if scores_file is not None:
        write_atomically(scores_file, csv_from_scores(evaluation).encode())
    if plots is not None:
        for place in write_plots(evaluation, plots):
            logger.info("plot: %s", printable_name(str(place)))
    if min_ap is not None:
        _require_ap(evaluation.rows, min_ap, gated)
    return EXIT_BAD_INPUT if evaluation.unreadable else EXIT_DONE


def _show_tables(evaluation: Evaluation) -> None:
    from train.evaluation.tables import main_table, robustness_table, unreadable_line

    click.echo(main_table(evaluation))
    if evaluation.degraded:
        click.echo("\n" + robustness_table(evaluation))
    if evaluation.unreadable:
        click.echo("\n" + unreadable_line(evaluation))


def _require_ap(rows: list[GeneratorScore], least: float, gated: tuple[str, ...]) -> None:
    low = [
        f"{printable_name(row.name)} {row.ap:.3f}"
        for row in rows
        if (row.name in gated or not gated) and not row.ap >= least
    ]
    if low:
        raise GateFailedError(f"AP: found {', '.join(low)}, expected at least {least}")
