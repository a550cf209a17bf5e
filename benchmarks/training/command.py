"""python -m benchmarks training."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.output import output_options, write_output
from runtime.errors import GateFailedError

_NAMES = ("jpeg", "held")


@click.command()
@click.option("--setting", "names", type=click.Choice(_NAMES), multiple=True, help="default: both")
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--workers", type=click.IntRange(0, 64), default=2, show_default=True, help="read pictures")
@click.option("--threads", type=click.IntRange(1, 256), help="of PyTorch; default: its own choice")
@click.option("--side", type=click.IntRange(256, 8192), default=1024, show_default=True, help="of pictures")
@click.option("--gate", is_flag=True, help="exit code 1 if a ratio is below its goal")
@output_options
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

    from benchmarks.machine import machine_facts
    from benchmarks.training.report import measure, missed_goals, show
    from benchmarks.training.settings import SETTINGS

    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    for setting in SETTINGS:
        if setting.name in (names or _NAMES):
            rows.append(measure(setting, side=side, workers=workers, repeats=repeats))
            if not as_json:
                show(rows[-1])
    found = machine_facts() | {"torch_threads": torch.get_num_threads(), "settings": rows}
    write_output(found, as_json=as_json, json_file=json_file)
    if gate and missed_goals(rows):
        raise GateFailedError("; ".join(missed_goals(rows)))
