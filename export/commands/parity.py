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
@click.option("--max-abs-logit", type=float, help="limit of |difference of logits|; default by precision")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(path_type=Path), help="write the report to a file")
@verbosity_option
def parity(
    bundle: Path,
    checkpoint: Path | None,
    data: Path | None,
    backend: str,
    max_abs_logit: float | None,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Compares BUNDLE's engine with PyTorch on the golden mosaics and on pictures, verdict by verdict.

    Without --checkpoint the golden mosaics are compared with the logits that the bundle itself stores.
    Exits 1 when a logit differs by more than the limit (a verdict whose margin exceeds it cannot change
    then), or when the bundle has another threshold than its checkpoint.
    """
    from export.checkpoint import CheckpointSource
    from export.parity.compare import Limits
    from export.parity.gate import file_parity, golden_parity, settings_parity
    from export.parity.limits import bundle_limits
    from runtime.detector import Detector
    from runtime.files import write_atomically

    if data is not None and checkpoint is None:
        raise UsageError("--data: pictures are compared with PyTorch; name the run with --checkpoint")
    if max_abs_logit is not None and not 0 <= max_abs_logit < float("inf"):
        raise UsageError(f"--max-abs-logit: found {max_abs_logit}, expected a number of at least 0")
    source = None if checkpoint is None else CheckpointSource(checkpoint)
    # The self-test would refuse a drifting engine with less to say about it than this report has.
    with Detector.open(bundle, backend, selftest=False) as detector:
        manifest = detector.bundle.manifest
        limits = bundle_limits(manifest, detector.backend_report.entry.precision)
        if max_abs_logit is not None:
            limits = Limits(max_abs_logit, limits.min_cosine)
        settings = [settings_parity(manifest, source)] if source is not None else []
        hops = [golden_parity(detector, source, limits=limits)]
        if source is not None and data is not None:
            hops.append(file_parity(detector, source, data, limits=limits))
    report = {
        "schema": 1,
        "bundle_digest": manifest.digest,
        "hops": [check.to_json() for check in settings] + [hop.to_json() for hop in hops],
    }
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    if as_json:
        print_json(report)
    else:
        for check in settings:
            click.echo(check.line())
        for hop in hops:
            click.echo(hop.line())
            for flip in hop.flips:
                click.echo(
                    f"  {'tie ' if flip.tie else 'FLIP'} {flip.item}: {flip.reference_logit:.4f} -> "
                    f"{flip.logit:.4f}, margin {flip.margin:.4f}"
                )
    failed = [check.hop for check in settings if not check.passed] + [h.hop for h in hops if not h.passed]
    if failed:
        count = len(settings) + len(hops)
        raise GateFailedError(f"parity: {len(failed)} of {count} checks failed, first: {failed[0]}")
