"""python -m benchmarks: runs what needs no GPU and prints one table; --json for machines."""

from __future__ import annotations

import click

from benchmarks.patches import patch_selection
from runtime.console import print_json, run_cli


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
def main(repeats: int, as_json: bool) -> None:
    """Times patch selection against the straightforward float64 loop, side by side in this run."""
    rows = [
        patch_selection(height, width, repeats) for height, width in ((256, 256), (1024, 1024), (3000, 4000))
    ]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'picture':<12}{'loop ms':>10}{'ours ms':>10}{'ratio':>8}{'lowest':>8}{'highest':>9}")
    for row in rows:
        click.echo(
            f"{row['picture']:<12}{row['loop_ms']:>10.1f}{row['ours_ms']:>10.1f}{row['ratio']:>8.2f}"
            f"{row['ratio_min']:>8.2f}{row['ratio_max']:>9.2f}"
        )


if __name__ == "__main__":
    run_cli(main, "python -m benchmarks")
