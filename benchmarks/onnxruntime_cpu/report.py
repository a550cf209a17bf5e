"""Shows the CPU latency benchmark as tables and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.machine import busy_warning


def show(row: dict[str, Any]) -> None:
    """Prints one backbone's tables, the fastest first."""
    for table in row["batches"]:
        click.echo(
            f"\n{row['backbone']} (random weights), batch {table['batch']}, {table['rounds']} processes each"
        )
        if (warning := busy_warning(table["others_share_of_machine"])) is not None:
            click.echo(warning)
        click.echo(
            f"{'':<34}{'median ms':>10}{'least ms':>10}{'p90 ms':>9}{'CPU ms':>9}"
            f"{'ratio':>8}{'95 % from':>11}{'to':>7}{'CPU ratio':>11}"
        )
        for name, own in sorted(table["contestants"].items(), key=lambda pair: pair[1]["wall_ms"]):
            click.echo(
                f"{name:<34}{own['wall_ms']:>10.1f}{own['least_ms']:>10.1f}{own['p90_ms']:>9.1f}"
                f"{own['cpu_ms']:>9.1f}{own['ratio']:>8.3f}{own['ratio_low']:>11.3f}{own['ratio_high']:>7.3f}"
                f"{own['cpu_ratio']:>11.3f}"
            )
        click.echo(
            f"shipped over fastest ({table['fastest']}): {table['shipped_over_fastest']:.3f}, "
            f"goal at most {table['goal']}"
        )
        for name, reason in table["refused"].items():
            click.echo(f"refused: {name}: {reason}")


def missed_goals(rows: list[dict[str, Any]]) -> list[str]:
    """Returns one line for each table in which somebody is faster by more than the goal allows."""
    return [
        f"{row['backbone']}, batch {table['batch']}: the shipped engine takes "
        f"{table['shipped_over_fastest']:.3f} times as long as {table['fastest']}, "
        f"expected at most {table['goal']}"
        for row in rows
        for table in row["batches"]
        if table["shipped_over_fastest"] > table["goal"]
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes bars of the median latency, one panel for each backbone and batch."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [(row["backbone"], table) for row in rows for table in row["batches"]]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 3.2 * len(panels)), squeeze=False)
    for axis, (backbone, table) in zip(axes[:, 0], panels, strict=True):
        found = sorted(table["contestants"].items(), key=lambda pair: -pair[1]["wall_ms"])
        colours = ["tab:orange" if name.startswith("shipped") else "tab:blue" for name, _ in found]
        axis.barh([name for name, _ in found], [own["wall_ms"] for _, own in found], color=colours)
        axis.set_title(f"{backbone}, batch {table['batch']}")
        axis.set_xlabel("median ms")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
