"""python -m export parity."""

from __future__ import annotations

import json
from pathlib import Path

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import GateFailedError, UsageError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="run that the bundle was made from")
@click.option("--data", type=click.Path(path_type=Path), help="folder of pictures; needs --checkpoint")
@click.option("--backend", default="auto", show_default=True, help="engine to compare; by name it must run")
@click.option("--max-abs-logit", type=float, help="limit of |difference of logits|; default the manifest's")
@click.option("--max-hard-flips", type=int, default=0, show_default=True, help="allowed changed verdicts")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(path_type=Path), help="write the report to a file")
@verbosity_option
def parity(
    bundle: Path,
    checkpoint: Path | None,
    data: Path | None,
    backend: str,
    max_abs_logit: float | None,
    max_hard_flips: int,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Compares BUNDLE's engine with PyTorch on the golden mosaics and on pictures, verdict by verdict.

    Exits 1 when a logit differs by more than the limit, or a verdict changes whose margin exceeds it.
    """
    from export.checkpoint import CheckpointSource
    from export.parity.gate import file_parity, golden_parity
    from runtime.detector import Detector
    from runtime.files import write_atomically
    from runtime.tolerances import logit_tolerance

    if data is not None and checkpoint is None:
        raise UsageError("--data: pictures are compared with PyTorch; name the run with --checkpoint")
    source = None if checkpoint is None else CheckpointSource(checkpoint)
    # The self-test would refuse a drifting engine with less to say about it than this report has.
    with Detector.open(bundle, backend, selftest=False) as detector:
        precision = detector.backend_report.entry.precision
        limit = max_abs_logit
        if limit is None:
            limit = logit_tolerance(detector.bundle.manifest.tolerances, precision)
        hops = [golden_parity(detector, source, tolerance=limit, max_hard_flips=max_hard_flips)]
        if source is not None and data is not None:
            hops.append(file_parity(detector, source, data, tolerance=limit, max_hard_flips=max_hard_flips))
    report = {
        "schema": 1,
        "bundle_digest": detector.bundle.manifest.digest,
        "hops": [hop.to_json() for hop in hops],
    }
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    if as_json:
        print_json(report)
    else:
        for hop in hops:
            click.echo(hop.line())
            for flip in hop.flips:
                click.echo(
                    f"  {'tie ' if flip.tie else 'FLIP'} {flip.item}: {flip.reference_logit:.4f} -> "
                    f"{flip.logit:.4f}, margin {flip.margin:.4f}"
                )
    failed = [hop for hop in hops if not hop.passed]
    if failed:
        raise GateFailedError(
            f"parity: {len(failed)} of {len(hops)} hops are over the limit: {failed[0].hop}"
        )
