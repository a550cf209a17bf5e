"""python -m train calibrate."""

from __future__ import annotations

import math
from pathlib import Path

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError


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
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def calibrate(run: Path, data: Path, fpr: float, device: str, as_json: bool) -> None:
    """Fits temperature and threshold of RUN on DATA/<class>/{0_real,1_fake}/ and stores them in the run."""
    import numpy as np

    from train.calibration import fit_decision
    from train.checkpoint import load_checkpoint, write_record
    from train.data.layout import find_samples, fingerprint
    from train.device import require_device
    from train.scores import score_samples

    if math.isnan(fpr):  # click's range lets it pass
        raise UsageError("--fpr: found nan, expected a share above 0 and below 1")
    require_device(device)
    checkpoint = load_checkpoint(run)
    samples = find_samples(data)
    logits = score_samples(checkpoint, samples, device, title="reading patches")
    decision = fit_decision(np.array([sample.label for sample in samples]), logits, max_fpr=fpr)
    calibration = {"fpr": fpr, "pictures": len(samples), "fingerprint": fingerprint(samples)}
    write_record(run, checkpoint.record | {"decision": decision.to_json(), "calibration": calibration})
    if as_json:
        print_json({"schema": 1, "run": str(run), "decision": decision.to_json(), "calibration": calibration})
        return
    click.echo(
        f"threshold {decision.threshold:.6f}, temperature {decision.temperature:.3f} "
        f"at a false-positive rate of {fpr} on {len(samples)} pictures: {run}"
    )
