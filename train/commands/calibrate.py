"""python -m train calibrate."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import EXIT_BAD_INPUT, EXIT_DONE, UsageError
from runtime.names import printable_name
from train.commands.options import scoring_options

if TYPE_CHECKING:
    from runtime.decision import Decision
    from train.evaluation.rates import CalibrationReport, Rate, SourceRates


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--fpr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="share of real pictures that may be called generated",
)
@click.option(
    "--uncertain",
    metavar="LO,HI",
    help="probabilities between which a verdict counts as uncertain, such as 0.3,0.7; default none",
)
@click.option(
    "--uncertain-share",
    type=float,
    metavar="SHARE",
    help="instead: let this share of DATA's pictures, those nearest to the threshold, count as uncertain",
)
@scoring_options
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def calibrate(
    run: Path,
    data: Path,
    fpr: float,
    uncertain: str | None,
    uncertain_share: float | None,
    device: str,
    batch: int | None,
    max_corrupt: float | None,
    as_json: bool,
) -> int:
    """Fits temperature and threshold of RUN on DATA/<source>/{0_real,1_fake}/ and stores them in the run.

    The rates are those on DATA itself, which chose the threshold. Exits with 2 when any picture could not be
    read; the others are used.
    """
    if math.isnan(fpr):  # click's range lets it pass
        raise UsageError("--fpr: found nan, expected a share above 0 and below 1")
    band = None if uncertain is None else _parsed_band(uncertain)
    if band is not None and uncertain_share is not None:
        raise UsageError("--uncertain and --uncertain-share exclude each other; give one of them")
    if uncertain_share is not None and not 0 < uncertain_share < 1:
        raise UsageError(f"--uncertain-share: found {uncertain_share}, expected a share above 0 and below 1")
    import numpy as np

    from train.checkpoint import load_checkpoint
    from train.data.layout import fingerprint
    from train.device import require_device
    from train.evaluation.calibration import fit_decision, uncertain_band
    from train.evaluation.rates import measure_decision
    from train.evaluation.scores import readable_samples, score_samples
    from train.record import write_record

    require_device(device)
    checkpoint = load_checkpoint(run)
    audit = readable_samples(data, checkpoint.config.data, title="calibration", max_corrupt=max_corrupt)
    samples, unreadable = audit.samples, len(audit.unreadable)
    logits = score_samples(checkpoint, samples, device, title="reading patches", batch=batch)
    decision = fit_decision(np.array([sample.label for sample in samples]), logits, max_fpr=fpr)
    if uncertain_share is not None:
        band = uncertain_band(decision, logits, share=uncertain_share)
    if band is not None:
        decision = dataclasses.replace(decision, uncertain=band)
    report = measure_decision(decision, samples, logits)
    calibration = {
        "fpr": fpr,
        "pictures": len(samples),
        "unreadable": unreadable,
        "fingerprint": fingerprint(samples),
        **report.to_json(),
    }
    write_record(run, checkpoint.record | {"decision": decision.to_json(), "calibration": calibration})
    if as_json:
        print_json({"schema": 1, "run": str(run), "decision": decision.to_json(), "calibration": calibration})
    else:
        click.echo(
            f"threshold {decision.threshold:.6f}, temperature {decision.temperature:.3f} "
            f"at a false-positive rate of {fpr} on {len(samples)} pictures: {printable_name(str(run))}"
        )
        _show(report, decision, len(samples), unreadable)
        name = printable_name(str(run))
        click.echo(
            f"next: python -m export build-engine {name} -o BUNDLE, or, for a bundle that was built before, "
            f"python -m export set-decision BUNDLE --from {name}",
            err=True,
        )
    return EXIT_BAD_INPUT if unreadable else EXIT_DONE


def _parsed_band(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as err:
        raise UsageError(f"--uncertain: found {text!r}, expected LO,HI such as 0.3,0.7") from err
    if not 0 <= low < high <= 1:  # refuses NaN, which compares false with everything
        raise UsageError(f"--uncertain: found {text!r}, expected 0 <= LO < HI <= 1")
    return low, high


def _show(report: CalibrationReport, decision: Decision, pictures: int, unreadable: int) -> None:
    click.echo(f"ECE {report.ece_before:.3f} at a temperature of 1, {report.ece_after:.3f} at this one")
    low, high = decision.uncertain
    if low < high:
        accuracy = report.certain_accuracy
        rest = "" if accuracy is None else f", accuracy {accuracy:.3f} on the rest"
        click.echo(
            f"uncertain from {low:.4g} to {high:.4g}: {report.uncertain_count} of {pictures} pictures{rest}"
        )
    named = [("all", report.overall), *((printable_name(s.name), s) for s in report.sources)]
    width = max(8, *(len(name) for name, _ in named)) + 1
    rates = f"{'FPR':>8}{'95 % interval':>18}{'fakes':>8}{'TPR':>8}{'95 % interval':>18}"
    click.echo(f"{'source':<{width}}{'reals':>8}{rates}")
    for name, source in named:
        click.echo(f"{name:<{width}}{_cells(source)}")
    click.echo("measured on the pictures that chose the threshold")
    if unreadable:
        click.echo(f"unreadable: {unreadable} of {pictures + unreadable} pictures, left out")


def _cells(source: SourceRates) -> str:
    return _rate_cells(source.false_positive) + _rate_cells(source.true_positive)


def _rate_cells(rate: Rate | None) -> str:
    if rate is None:
        return f"{0:>8}{'-':>8}{'-':>18}"
    interval = f"{rate.low:.3f} to {rate.high:.3f}"
    return f"{rate.count:>8}{rate.value:>8.3f}{interval:>18}"
