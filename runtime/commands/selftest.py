"""``selftest``: every golden image, under every law, at every batch size that matters."""

from __future__ import annotations

from typing import Any

import click

from runtime.commands.options import BUNDLE, engine_options, opening_arguments
from runtime.console import Progress, print_json, verbosity_option
from runtime.errors import EXIT_DONE, EXIT_GATE_FAILED


@click.command()
@BUNDLE
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@engine_options
@verbosity_option
def selftest(bundle: str, as_json: bool, **options: Any) -> int:
    """Check every law of a bundle's engine on this machine. Exits with 1 when one does not hold."""
    from runtime.bundle.golden import read_golden
    from runtime.detector import Detector
    from runtime.selftest.checks import manifest_tolerance
    from runtime.selftest.laws import check_count, full_self_test
    from runtime.selftest.stamps import Stamp, is_on_gpu

    with Detector.open(bundle, **opening_arguments(options | {"no_selftest": True})) as detector:
        manifest, report = detector.bundle.manifest, detector.backend_report
        path = detector.bundle.file(manifest.golden_file)
        golden = read_golden(path, manifest.embed_dim, count=manifest.golden_count)
        tolerance = manifest_tolerance(manifest, report.entry.precision)
        profiles = report.entry.profiles
        checks = []
        with Progress("self-test", check_count(detector.backend, profiles)) as progress:
            for check in full_self_test(detector.backend, golden, tolerance, profiles):
                checks.append(check)
                progress.advance(note=check.name)
    passed = all(check.passed for check in checks)
    if passed and is_on_gpu(report) and options["verify"] != "off":
        Stamp(manifest, report, options["cache_dir"]).keep()
    if as_json:
        print_json(
            {
                "schema": 1,
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
            click.echo(f"{'passed' if check.passed else 'FAILED'}  {check.line()}")
    return EXIT_DONE if passed else EXIT_GATE_FAILED
