"""Runs the settings, and shows what was found: ratios, phases, what is paid once, and on which machine."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.laps import Lap, run_in_turns
from benchmarks.machine import busy_warning
from benchmarks.training.pictures import write_pictures
from benchmarks.training.settings import STRAIGHTFORWARD, Arena, Setting

_PHASES = ("decode", "select", "mosaic", "teacher", "text", "student", "surgery", "optimiser")


def measure(setting: Setting, *, side: int, workers: int, repeats: int) -> dict[str, Any]:
    """Returns one setting's measurement as JSON values; times are milliseconds per step.

    Args:
        setting: which comparison.
        side: of the pictures, pixels.
        workers: processes that read pictures, for every contestant.
        repeats: counted laps of every contestant.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        samples, captions = write_pictures(folder / "data", setting.batch * setting.steps, side)
        with Arena(setting, samples, captions, folder / "runs", workers) as arena:
            laps, others = run_in_turns(arena.laps(), repeats, setting.title)
            phases = arena.phases()
        size = statistics.mean(sample.byte_size() for sample in samples)
        return {
            "setting": setting.name,
            "backbone": setting.backbone,
            "batch": setting.batch,
            "steps_per_lap": setting.steps,
            "picture": f"JPEG {side}x{side}, {size / 1000:.0f} kB on average",
            "workers": 0 if setting.is_held else workers,
            "others_share_of_machine": others,
            "contestants": {
                name: _row(setting, laps[STRAIGHTFORWARD], own, setting.goals.get(name))
                for name, own in laps.items()
            },
            "phases_ms": phases,
            "once_ms": arena.once_ms,
        }


def show(row: dict[str, Any]) -> None:
    """Prints one setting's tables."""
    click.echo(
        f"\n{row['setting']}: {row['backbone']} (random weights), batch {row['batch']}, {row['picture']}, "
        f"{row['workers']} workers"
    )
    if (warning := busy_warning(row["others_share_of_machine"])) is not None:
        click.echo(warning)
    click.echo(
        f"{'per step':<30}{'wall ms':>9}{'CPU ms':>9}{'ratio':>8}{'lowest':>8}{'highest':>9}"
        f"{'CPU ratio':>11}{'goal':>6}"
    )
    for name, own in row["contestants"].items():
        goal = "" if own["goal"] is None else f"{own['goal']:.1f}"
        click.echo(
            f"{name:<30}{own['wall_ms']:>9.0f}{own['cpu_ms']:>9.0f}{own['ratio']:>8.2f}"
            f"{own['ratio_min']:>8.2f}{own['ratio_max']:>9.2f}{own['cpu_ratio']:>11.2f}{goal:>6}"
        )
    click.echo("".join([f"{'phases, ms':<30}", *(f"{phase:>10}" for phase in _PHASES)]))
    for name, phases in row["phases_ms"].items():
        click.echo("".join([f"{name:<30}", *(f"{phases.get(phase, 0.0):>10.1f}" for phase in _PHASES)]))
    for name, milliseconds in row["once_ms"].items():
        click.echo(f"once, before stage 2: {name.replace('_', ' ')} {milliseconds:.3f} ms")


def missed_goals(rows: list[dict[str, Any]]) -> list[str]:
    """Returns one line for each ratio below its goal."""
    return [
        f"{row['setting']}, {name}: ratio {own['ratio']:.2f}, expected at least {own['goal']:.1f}"
        for row in rows
        for name, own in row["contestants"].items()
        if own["goal"] is not None and own["ratio"] < own["goal"]
    ]


def _row(setting: Setting, base: list[Lap], own: list[Lap], goal: float | None) -> dict[str, Any]:
    ratios = [slow.wall / fast.wall for slow, fast in zip(base, own, strict=True)]
    return {
        "wall_ms": 1000 * statistics.median(lap.wall for lap in own) / setting.steps,
        "cpu_ms": 1000 * statistics.median(lap.cpu for lap in own) / setting.steps,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "cpu_ratio": statistics.median(slow.cpu / fast.cpu for slow, fast in zip(base, own, strict=True)),
        "goal": goal,
    }
