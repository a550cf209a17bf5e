"""python -m benchmarks startup."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from runtime.console import print_json
from runtime.errors import GateFailedError
from runtime.files import write_atomically


@click.command()
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="measured as it is; default: one of ViT-B-32 with random weights, built for this",
)
@click.option("--repeats", type=click.IntRange(1, 100), default=7, show_default=True)
@click.option("--gate", is_flag=True, help="exit code 1 if a goal is missed")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too")
def startup(bundle: Path | None, repeats: int, gate: bool, as_json: bool, json_file: Path | None) -> None:
    """Times importing the runtime, and all of predict on one photograph against a bare script.

    The bare script imports onnxruntime, opens the same model as one inline file with default options and runs
    it once. Every lap is a process of its own, in turns. A ratio above 1 means longer than the bare script.
    """
    from benchmarks.startup.measure import imports, missed_goals, predictions
    from benchmarks.training.report import machine_facts

    with ExitStack() as stack:
        if bundle is None:
            bundle = _random_bundle(Path(stack.enter_context(TemporaryDirectory())))
        found = machine_facts() | {
            "repeats": repeats,
            "import": imports(repeats),
            "predict": predictions(bundle.resolve(), repeats),
        }
    found["missed"] = missed_goals(found)
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(found)
    else:
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
