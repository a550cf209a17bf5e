"""``bench``: how fast a bundle is on this machine, phase by phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from runtime.commands.options import BUNDLE, engine_options, opening_arguments, picture_options
from runtime.console import Progress, print_json, verbosity_option
from runtime.errors import UsageError

_MAX_SYNTHETIC_PIXELS = 200_000_000  # what a picture may have by default


def _batch_list(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--batches: found {value!r}, expected sizes such as 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _size(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    width, _, height = value.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) >= 32 and int(height) >= 32):
        raise UsageError(f"--size: found {value!r}, expected WIDTHxHEIGHT of at least 32x32")
    if max(int(width), int(height)) > 65_500:
        raise UsageError(f"--size: found {value!r}, a JPEG has at most 65500 pixels a side")
    if int(width) * int(height) > _MAX_SYNTHETIC_PIXELS:
        raise UsageError(f"--size: found {value!r}, expected at most {_MAX_SYNTHETIC_PIXELS} pixels in all")
    return int(width), int(height)


@click.command()
@BUNDLE
@click.argument("paths", nargs=-1)
@click.option("--batches", metavar="N,N,...", callback=_batch_list, help="[default: min, opt and max]")
@click.option("--runs", type=click.IntRange(1), default=30, show_default=True, help="timed runs per size")
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True, help="runs before those")
@click.option(
    "--pictures", type=click.IntRange(1), default=64, show_default=True, help="pictures of the whole stream"
)
@click.option(
    "--size", metavar="WxH", default="1920x1080", show_default=True, callback=_size,
    help="synthetic JPEG that is judged when no PATHS are given",
)  # fmt: skip
@engine_options
@picture_options
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="write the JSON here too")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="write a figure (PNG, SVG, PDF)"
)
@verbosity_option
def bench(
    bundle: str,
    paths: tuple[str, ...],
    batches: tuple[int, ...],
    runs: int,
    warmup: int,
    pictures: int,
    size: tuple[int, int],
    as_json: bool,
    json_file: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Measure decode, select, copy and infer, the engine at several batch sizes, and the whole stream.

    PATHS are pictures or folders of them; without any, a synthetic JPEG is judged again and again.
    """
    from runtime.bench import BenchPlan, measure, step_count, synthetic_jpeg
    from runtime.detector import Detector
    from runtime.files import write_atomically
    from runtime.pictures.scan import expand_paths
    from runtime.plots import check_plot, write_bench_plot

    if plot is not None:
        check_plot(plot)
    sources: list[str | bytes] = [*expand_paths(paths)] if paths else [synthetic_jpeg(*size)]
    if not sources:
        raise UsageError("no pictures found; check the paths and the suffixes of the files")
    with Detector.open(bundle, **opening_arguments(options)) as detector:
        largest = detector.backend.profile[2]
        if any(count > largest for count in batches):
            raise UsageError(f"--batches: found {max(batches)}, this engine takes 1 to {largest}")
        sizes = batches or tuple(sorted(set(detector.backend.profile)))
        plan = BenchPlan(sizes, runs=runs, warmup=warmup, pictures=pictures)
        with Progress("bench", step_count(plan)) as progress:
            report = measure(detector, sources, plan, lambda note: progress.advance(note=note))
    report["pictures"] = {"count": len(sources), "synthetic": None if paths else list(size)}
    if json_file is not None:
        write_atomically(json_file, json.dumps(report, indent=1, allow_nan=False).encode() + b"\n")
    if plot is not None:
        write_bench_plot(report, plot)
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    columns = ("p50", "p90", "p99", "mean")
    click.echo(f"{'ms':<18}" + "".join(f"{name:>10}" for name in columns) + f"{'pictures/s':>13}")
    rows: list[tuple[str, dict[str, float], str]] = [
        (name, report["phases"][f"{name}_ms"], "") for name in ("decode", "select")
    ]
    for row in report["batches"]:
        rows.append((f"copy, batch {row['batch']}", row["copy_ms"], ""))
        rows.append((f"infer, batch {row['batch']}", row["infer_ms"], f"{row['pictures_per_second']:.1f}"))
    for name, summary, rate in rows:
        click.echo(f"{name:<18}" + "".join(f"{summary[c]:>10.2f}" for c in columns) + f"{rate:>13}")
    stream = report["stream"]
    click.echo(
        f"stream of {stream['pictures']} pictures: {stream['pictures_per_second']:.1f} a second, "
        f"{1e3 * stream['cpu_seconds'] / stream['pictures']:.1f} ms of CPU each"
    )
