"""python -m benchmarks onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from runtime.console import print_json
from runtime.errors import GateFailedError
from runtime.files import write_atomically

# Counted rounds by backbone and batch: enough for a median, few enough for some minutes in all.
_ROUNDS = {("ViT-B-32", 1): 20, ("ViT-B-32", 8): 10, ("ViT-L-14", 1): 8, ("ViT-L-14", 8): 3}
_QUICK_ROUNDS = 2
_BACKBONES = ("ViT-B-32", "ViT-L-14")


@click.command("onnxruntime")
@click.option("--backbone", "names", type=click.Choice(_BACKBONES), multiple=True, help="default: both")
@click.option("--batch", "batches", type=click.Choice(["1", "8"]), multiple=True, help="default: both")
@click.option("--threads", type=click.IntRange(1, 256), help="of everyone; default: one per core")
@click.option("--all", "is_all", is_flag=True, help="every configuration of ONNX Runtime for ViT-L-14 too")
@click.option("--compile/--no-compile", "compiles", default=True, help="torch.compile, which takes a minute")
@click.option("--quick", is_flag=True, help=f"{_QUICK_ROUNDS} rounds")
@click.option("--gate", is_flag=True, help="exit code 1 if the shipped engine is not among the fastest")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="writes a PNG or SVG")
def onnxruntime_cpu(
    names: tuple[str, ...],
    batches: tuple[str, ...],
    threads: int | None,
    is_all: bool,
    compiles: bool,
    quick: bool,
    gate: bool,
    as_json: bool,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Times the CPU engine against PyTorch, torch.compile, OpenVINO and ONNX Runtime's other settings.

    Random weights of the true shape, uint8 mosaics in, as many threads for each. Whoever leaves FP32 parity
    with PyTorch is refused and not timed. Laps in turns; ratios round by round. A ratio above 1 means that
    the shipped engine takes less time.
    """
    from benchmarks.onnxruntime_cpu.report import draw, missed_goals, show
    from benchmarks.training.report import machine_facts

    count = threads or os.cpu_count() or 1
    rows = []
    for name in names or _BACKBONES:
        sizes = [int(each) for each in batches or ("1", "8")]
        rounds = {size: _QUICK_ROUNDS if quick else _ROUNDS[name, size] for size in sizes}
        rows.append(_backbone(name, rounds, count, is_all=is_all or name == _BACKBONES[0], compiles=compiles))
        if not as_json:
            show(rows[-1])
    found = machine_facts() | {"threads": count, "backbones": rows}
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
    if plot is not None:
        draw(rows, plot)
    if as_json:
        print_json(found)
    if gate and missed_goals(rows):
        raise GateFailedError("; ".join(missed_goals(rows)))


def _backbone(
    name: str, rounds: Mapping[int, int], threads: int, *, is_all: bool, compiles: bool
) -> dict[str, Any]:
    from benchmarks.onnxruntime_cpu.contestants import (
        EAGER,
        SHIPPED,
        main_contestants,
        other_contestants,
    )
    from benchmarks.onnxruntime_cpu.graphs import write_graphs
    from benchmarks.onnxruntime_cpu.measure import measure, mosaics, refusals

    with TemporaryDirectory() as folder:
        graphs = write_graphs(name, Path(folder))
        contestants = main_contestants(graphs, threads)
        if not compiles:
            del contestants["torch.compile"]
        images = mosaics(max(rounds))
        reference = contestants[EAGER](images)
        refused = {}
        if is_all:
            for other, opened in other_contestants(graphs, threads).items():
                try:
                    contestants[other] = opened()
                # A configuration that this version cannot open is a finding, whatever it raises.
                except Exception as err:
                    refused[other] = " ".join(str(err).split())[:200]
        refused |= refusals(contestants, reference, images)
        if SHIPPED in refused:
            raise GateFailedError(f"{name}: the shipped engine leaves FP32 parity: {refused[SHIPPED]}")
        timed = {other: run for other, run in contestants.items() if other not in refused}
        tables = [measure(timed, size, repeats, f"{name}, batch {size}") for size, repeats in rounds.items()]
    return {"backbone": name, "refused": refused, "batches": tables}
