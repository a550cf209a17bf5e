"""``python -m benchmarks parity``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from runtime.console import print_json
from runtime.files import write_atomically


@click.command()
@click.option("--backbone", default="ViT-B-32", show_default=True)
@click.option("--pictures", type=click.IntRange(1, 100_000), default=64, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too")
def parity(backbone: str, pictures: int, as_json: bool, json_file: Path | None) -> None:
    """Times a parity run from picture files and says how much of it is not a forward pass."""
    from benchmarks.parity.measuring import parity_overhead

    row = parity_overhead(backbone, pictures)
    if json_file is not None:
        write_atomically(json_file, json.dumps(row, indent=2, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(row)
        return
    click.echo(
        f"{row['backbone']}, {row['pictures']} pictures: {row['total_s']:.1f} s, forward passes "
        f"{row['forward_s']:.1f} s, overhead {row['overhead']:.1%}; "
        f"FP16 emulated {row['fp16_emulated_s']:.1f} s apart"
    )
    worst = ", ".join(f"{key} 1 - {value:.1e}" for key, value in row["one_minus_cosine"].items())
    click.echo(f"largest |dlogit| of a hop {row['max_abs_logit']:.2e}; smallest cosines {worst}")
