"""python -m benchmarks patches."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.machine import machine_facts
from benchmarks.output import output_options, write_output
from benchmarks.patch_selection.measuring import patch_selection

_SIZES = ((256, 256), (1024, 1024), (3000, 4000))


@click.command()
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@output_options
def patches(repeats: int, as_json: bool, json_file: Path | None) -> None:
    """Times patch selection against the straightforward float64 loop and against Pillow decoding the picture.

    All in this run, in turns; medians. A ratio above 1 means that the selection takes less time.
    """
    rows = [patch_selection(height, width, repeats) for height, width in _SIZES]
    write_output(machine_facts() | {"rows": rows}, as_json=as_json, json_file=json_file)
    if as_json:
        return
    click.echo(
        f"{'picture':<12}{'loop ms':>9}{'decode ms':>11}{'ours ms':>9}"
        f"{'loop/ours':>11}{'lowest':>8}{'highest':>9}{'decode/ours':>13}"
    )
    for row in rows:
        click.echo(
            f"{row['picture']:<12}{row['loop_ms']:>9.1f}{row['decode_ms']:>11.1f}{row['ours_ms']:>9.1f}"
            f"{row['ratio']:>11.2f}{row['ratio_min']:>8.2f}{row['ratio_max']:>9.2f}{row['decode_ratio']:>13.2f}"
        )
