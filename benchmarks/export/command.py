"""python -m benchmarks export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.output import output_options, write_output
from runtime.errors import GateFailedError


@click.command("export")
@click.option("--backbone", "backbones", multiple=True, default=("ViT-L-14",), show_default=True)
@click.option(
    "--backend", "backends", multiple=True, default=("onnxruntime", "tensorrt-rtx"), show_default=True
)
@click.option("--tracer/--no-tracer", default=True, help="an FP32 export by torch.onnx.export beside it")
@click.option("--gate", is_flag=True, help="exit code 1 above 3 minutes or 6 GB, numeric checks timed apart")
@output_options
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
    from benchmarks.export.measure import measure, missed_goals
    from benchmarks.machine import machine_facts
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
    write_output(report, as_json=as_json, json_file=json_file)
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
