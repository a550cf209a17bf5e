"""python -m benchmarks training."""

from __future__ import annotations

import json
from pathlib import Path

import click

from runtime.console import print_json
from runtime.errors import GateFailedError
from runtime.files import write_atomically

_NAMES = ("jpeg", "held")


@click.command()
@click.option("--setting", "names", type=click.Choice(_NAMES), multiple=True, help="default: both")
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--workers", type=click.IntRange(0, 64), default=2, show_default=True, help="read pictures")
@click.option("--threads", type=click.IntRange(1, 256), help="of PyTorch; default: its own choice")
@click.option("--side", type=click.IntRange(256, 8192), default=1024, show_default=True, help="of pictures")
@click.option("--gate", is_flag=True, help="exit code 1 if a ratio is below its goal")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too")
def training(
    names: tuple[str, ...],
    repeats: int,
    workers: int,
    threads: int | None,
    side: int,
    gate: bool,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Times a step of stage 2 against a straightforward trainer that computes the same.

    The straightforward trainer loops over patches in Python, runs teacher and text encoder in every step, and
    takes the surgery's gradients from autograd. Laps of one epoch in turns, medians of the ratios round by
    round; phases are taken apart, reading in the trainer's own process. A ratio above 1 means that this
    project's loop takes less time.
    """
    import torch

    from benchmarks.training.report import machine_facts, measure, missed_goals, show
    from benchmarks.training.settings import SETTINGS

    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    for setting in SETTINGS:
        if setting.name in (names or _NAMES):
            rows.append(measure(setting, side=side, workers=workers, repeats=repeats))
            if not as_json:
                show(rows[-1])
    found = machine_facts() | {"settings": rows}
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(found)
    if gate and missed_goals(rows):
        raise GateFailedError("; ".join(missed_goals(rows)))
