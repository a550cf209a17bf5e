"""``selftest``: every golden image, at every batch size that matters."""

from __future__ import annotations

from typing import Any

import click

from runtime.commands.options import BUNDLE, engine_options
from runtime.console import print_json, verbosity_option
from runtime.errors import EXIT_DONE, EXIT_GATE_FAILED


@click.command()
@BUNDLE
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@engine_options
@verbosity_option
def selftest(bundle: str, as_json: bool, **options: Any) -> int:
    """Check that a bundle gives its golden logits on this machine. Exits with 1 when it does not."""
    from runtime.detector import Detector
    from runtime.golden import read_golden
    from runtime.selftest import full_self_test, manifest_tolerance

    with Detector.open(bundle, selftest=False, **options) as detector:
        manifest, report = detector.bundle.manifest, detector.backend_report
        golden = read_golden(detector.bundle.file(manifest.golden_file), manifest.embed_dim)
        tolerance = manifest_tolerance(manifest, report.entry.precision)
        checks = full_self_test(detector.backend, golden, tolerance)
    passed = all(check.passed for check in checks)
    if as_json:
        print_json(
            {
                "passed": passed,
                "backend": report.name,
                "engine": report.engine,
                "images": len(golden.images),
                "reference": manifest.golden_reference,
                "checks": [check.to_json() for check in checks],
            }
        )
    else:
        for check in checks:
            outcome = "passed" if check.passed else "FAILED"
            click.echo(
                f"{outcome}  {check.name}: max |difference of logits| {check.max_abs_logit:.3g}, "
                f"allowed {check.tolerance:.3g}"
            )
    return EXIT_DONE if passed else EXIT_GATE_FAILED
