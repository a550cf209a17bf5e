"""``python -m benchmarks parity``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.machine import machine_facts
from benchmarks.output import output_options, write_output


@click.command()
@click.option("--backbone", default="ViT-B-32", show_default=True)
@click.option("--pictures", type=click.IntRange(1, 100_000), default=64, show_default=True)
@output_options
def parity(backbone: str, pictures: int, as_json: bool, json_file: Path | None) -> None:
    """Times a parity run from picture files and says how much of it is not a forward pass."""
    from benchmarks.parity.measuring import parity_overhead

    row = parity_overhead(backbone, pictures)
    write_output(machine_facts() | row, as_json=as_json, json_file=json_file)
    if as_json:
        return
    click.echo(
        f"{row['backbone']}, {row['pictures']} pictures: {row['total_s']:.1f} s, forward passes "
        f"{row['forward_s']:.1f} s, overhead {row['overhead']:.1%}; "
        f"FP16 emulated {row['fp16_emulated_s']:.1f} s apart"
    )
    worst = ", ".join(f"{key} 1 - {value:.1e}" for key, value in row["one_minus_cosine"].items())
    click.echo(f"largest |dlogit| of a hop {row['max_abs_logit']:.2e}; smallest cosines {worst}")
