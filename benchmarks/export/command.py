"""python -m benchmarks export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from runtime.console import print_json
from runtime.errors import GateFailedError
from runtime.files import write_atomically


@click.command("export")
@click.option("--backbone", "backbones", multiple=True, default=("ViT-L-14",), show_default=True)
@click.option(
    "--backend", "backends", multiple=True, default=("onnxruntime", "tensorrt-rtx"), show_default=True
)
@click.option("--tracer/--no-tracer", default=True, help="an FP32 export by torch.onnx.export beside it")
@click.option("--gate", is_flag=True, help="exit code 1 above 3 minutes or 6 GB, numeric checks timed apart")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too")
def export(
    backbones: tuple[str, ...],
    backends: tuple[str, ...],
    tracer: bool,
    gate: bool,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Measures the way from a checkpoint to a bundle: FP32 and FP16 graph, engine and structural checks.

    The checkpoint has random weights of the true size. Numeric checks are timed apart. Memory is the largest
    sum over the process tree, sampled 20 times a second. Beside it torch's tracer writes an FP32 graph alone.
    """
    import tempfile

    from benchmarks.export.contestants import ours, traced, write_untrained_run
    from benchmarks.export.measure import machine_facts, measure, missed_goals
    from export.steps.child import run_in_child

    rows = []
    for backbone in backbones:
        with tempfile.TemporaryDirectory(prefix="dgsnet-bench-") as folder:
            run = Path(folder) / "run"
            run_in_child("untrained run", write_untrained_run, run, backbone)
            found = [measure(f"{backbone}, build-engine", ours, run, backends)]
            if tracer:
                found.append(measure(f"{backbone}, torch.onnx.export FP32 alone", traced, run))
        rows += found
        if not as_json:
            for row in found:
                _show(row)
    report = machine_facts() | {"rows": rows}
    if json_file is not None:
        write_atomically(json_file, json.dumps(report, indent=2, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(report)
    missed = [text for row in rows if row["files"] for text in missed_goals(row)]
    if gate and missed:
        raise GateFailedError("; ".join(missed))


def _show(row: dict[str, Any]) -> None:
    click.echo(
        f"\n{row['name']}: {row['seconds']:.1f} s and {row['peak_bytes'] / 1e9:.2f} GB; numeric checks "
        f"{row['numeric_seconds']:.1f} s and {row['numeric_peak_bytes'] / 1e9:.2f} GB; CPU time "
        f"{row['cpu_seconds']:.1f} s; largest process {row['largest_process_bytes'] / 1e9:.2f} GB"
    )
    click.echo(f"{'phase':<36}{'s':>8}{'GB':>8}")
    for phase in row["phases"]:
        mark = "  numeric" if phase["numeric"] else ""
        click.echo(f"{phase['name']:<36}{phase['seconds']:>8.1f}{phase['peak_bytes'] / 1e9:>8.2f}{mark}")
