"""python -m benchmarks startup."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.output import output_options, write_output
from runtime.errors import GateFailedError


@click.command()
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="measured as it is; default: one of ViT-B-32 with random weights, built for this",
)
@click.option("--repeats", type=click.IntRange(1, 100), default=7, show_default=True)
@click.option("--gate", is_flag=True, help="exit code 1 if a goal is missed")
@output_options
def startup(bundle: Path | None, repeats: int, gate: bool, as_json: bool, json_file: Path | None) -> None:
    """Times importing the runtime, and all of predict on one photograph against a bare script.

    The bare script imports onnxruntime, opens the same model as one inline file with default options and runs
    it once. Every lap is a process of its own, in turns. A ratio above 1 means longer than the bare script.
    """
    from benchmarks.machine import machine_facts
    from benchmarks.startup.measure import imports, missed_goals, predictions

    with ExitStack() as stack:
        if bundle is None:
            bundle = _random_bundle(Path(stack.enter_context(TemporaryDirectory())))
        found = machine_facts() | {
            "repeats": repeats,
            "import": imports(repeats),
            "predict": predictions(bundle.resolve(), repeats),
        }
    found["missed"] = missed_goals(found)
    write_output(found, as_json=as_json, json_file=json_file)
    if not as_json:
        _show(found)
    if gate and found["missed"]:
        raise GateFailedError("; ".join(found["missed"]))


def _random_bundle(folder: Path) -> Path:
    from benchmarks.onnxruntime_cpu.graphs import write_graphs
    from export.build import BundleOptions, build_bundle

    source = folder / "source"
    source.mkdir()
    graphs = write_graphs("ViT-B-32", source)
    return build_bundle(graphs.contract, folder / "bundle", BundleOptions()).bundle


def _show(found: dict[str, Any]) -> None:
    for name, milliseconds in found["import"]["added_ms"].items():
        click.echo(f"import {name}: {milliseconds:.1f} ms more than numpy alone")
    table = found["predict"]
    click.echo(f"\none {table['photo']}, model of {table['model_mb']:.0f} MB")
    click.echo(
        f"{'':<28}{'median ms':>10}{'least ms':>10}{'CPU ms':>9}{'ratio':>8}{'CPU ratio':>11}{'peak MB':>9}"
    )
    for name, own in table["contestants"].items():
        click.echo(
            f"{name:<28}{own['wall_ms']:>10.0f}{own['least_ms']:>10.0f}{own['cpu_ms']:>9.0f}"
            f"{own['ratio']:>8.2f}{own['cpu_ratio']:>11.2f}{own['peak_mb']:>9.0f}"
        )
    click.echo(f"peak memory allowed: {table['allowed_mb']:.0f} MB")
    for line in found["missed"]:
        click.echo(f"missed: {line}")
