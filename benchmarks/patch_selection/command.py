"""python -m benchmarks patches."""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks.patch_selection.measuring import patch_selection
from runtime.console import print_json
from runtime.files import write_atomically

_SIZES = ((256, 256), (1024, 1024), (3000, 4000))


@click.command()
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too")
def patches(repeats: int, as_json: bool, json_file: Path | None) -> None:
    """Times patch selection against the straightforward float64 loop and against Pillow decoding the picture.

    All in this run, in turns; medians. A ratio above 1 means that the selection takes less time.
    """
    rows = [patch_selection(height, width, repeats) for height, width in _SIZES]
    if json_file is not None:
        write_atomically(json_file, json.dumps(rows, indent=2, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(rows)
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
