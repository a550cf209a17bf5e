"""python -m benchmarks onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.output import output_options, write_output
from runtime.errors import GateFailedError, UsageError
from runtime.machine import usable_cpus

_ROUNDS = 5
# Laps of each process by backbone and batch.
_LAPS = {("ViT-B-32", 1): 20, ("ViT-B-32", 8): 8, ("ViT-L-14", 1): 6, ("ViT-L-14", 8): 3}
_BACKBONES = ("ViT-B-32", "ViT-L-14")


@click.command("onnxruntime")
@click.option("--backbone", "names", type=click.Choice(_BACKBONES), multiple=True, help="default: both")
@click.option("--batch", "batches", type=click.Choice(["1", "8"]), multiple=True, help="default: both")
@click.option("--threads", type=click.IntRange(1, 256), help="of everyone; default: one per core")
@click.option("--all", "is_all", is_flag=True, help="every configuration of ONNX Runtime for ViT-L-14 too")
@click.option("--compile/--no-compile", "compiles", default=True, help="torch.compile, which takes a minute")
@click.option("--contestant", "chosen", multiple=True, help="these alone beside the shipped engine, by name")
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=_ROUNDS, show_default=True, help="processes of each"
)
@click.option("--quick", is_flag=True, help="one round of one lap")
@click.option("--gate", is_flag=True, help="exit code 1 if the shipped engine is not among the fastest")
@output_options
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="writes a PNG or SVG")
def onnxruntime_cpu(
    names: tuple[str, ...],
    batches: tuple[str, ...],
    threads: int | None,
    is_all: bool,
    compiles: bool,
    chosen: tuple[str, ...],
    rounds: int,
    quick: bool,
    gate: bool,
    as_json: bool,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Times the CPU engine against PyTorch, torch.compile, OpenVINO and ONNX Runtime's other settings.

    Random weights of the true shape, uint8 mosaics in, as many threads for each. Whoever leaves FP32 parity
    with PyTorch is refused and not timed. Every round opens each contestant in a process of its own; laps in
    turns, ratios lap by lap, with the 95 % bootstrap interval of their median. Above 1, the shipped engine
    takes less time.
    """
    from benchmarks.machine import machine_facts
    from benchmarks.onnxruntime_cpu.contestants import SHIPPED, contestants
    from benchmarks.onnxruntime_cpu.report import draw, missed_goals, show

    count = threads or usable_cpus()
    rows = []
    for name in names or _BACKBONES:
        everyone = contestants(is_all=is_all or name == _BACKBONES[0] or bool(chosen), compiles=compiles)
        if unknown := set(chosen) - set(everyone):
            raise UsageError(f"contestant: found {unknown.pop()!r}, expected one of {', '.join(everyone)}")
        taking_part = [each for each in everyone if not chosen or each in (SHIPPED, *chosen)]
        sizes = [(int(batch), 1 if quick else _LAPS[name, int(batch)]) for batch in batches or ("1", "8")]
        rows.append(_backbone(name, sizes, taking_part, threads=count, rounds=1 if quick else rounds))
        if not as_json:
            show(rows[-1])
    found = machine_facts() | {"threads": count, "backbones": rows}
    write_output(found, as_json=as_json, json_file=json_file)
    if plot is not None:
        draw(rows, plot)
    if gate and missed_goals(rows):
        raise GateFailedError("; ".join(missed_goals(rows)))


def _backbone(
    name: str, sizes: Sequence[tuple[int, int]], taking_part: Sequence[str], *, threads: int, rounds: int
) -> dict[str, Any]:
    """Measures one backbone at each (batch, laps)."""
    from benchmarks.onnxruntime_cpu.graphs import write_graphs
    from benchmarks.onnxruntime_cpu.measure import measure
    from export.steps.child import run_in_child

    with TemporaryDirectory() as folder:
        # In a child, whose memory is gone before anybody is timed.
        graphs = run_in_child("graphs", write_graphs, name, Path(folder))
        tables = [
            measure(taking_part, graphs, batch, rounds=rounds, laps=laps, threads=threads)
            for batch, laps in sizes
        ]
    return {"backbone": name, "batches": tables}
