"""Memory and time of several pictures at once, with the detector's bound on pixels in memory and without."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.decode import JPEG_QUALITY, tiled_picture
from benchmarks.laps import turned
from benchmarks.machine import machine_facts
from benchmarks.output import output_options, write_output
from runtime.console import Progress
from runtime.errors import GateFailedError, MissingDependencyError

THREADS = 8
# Name, width, height and how many: the largest that are taken by default, and what a phone takes.
CASES = (("large", 14_000, 14_000, 8), ("ordinary", 4_000, 3_000, 32))
WAYS = ("unbounded", "bounded")

_CHILD = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from runtime.decode import MAX_PIXELS
from runtime.decode.budget import PixelBudget
from runtime.pictures.mosaics import mosaic_from_picture

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key + ":"))

path, small, way, count, threads = sys.argv[1:]
budget = PixelBudget(MAX_PIXELS) if way == "bounded" else None

def work(path):
    return mosaic_from_picture(path, budget=budget).mosaics.tobytes()

with ThreadPoolExecutor(int(threads)) as pool:
    list(pool.map(work, [small] * 2 * int(threads)))
    with open("/proc/self/clear_refs", "w") as switch:
        switch.write("5")
    idle = memory("VmRSS")
    started, used = time.perf_counter(), time.process_time()
    same = len(set(pool.map(work, [path] * int(count)))) == 1
    print(json.dumps({
        "ms": (time.perf_counter() - started) * 1e3, "cpu_ms": (time.process_time() - used) * 1e3,
        "bytes": memory("VmHWM") - idle, "same": same,
    }))
"""


@click.command("decode-together")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="counted rounds")
@output_options
def decode_together(repeats: int, as_json: bool, json_file: Path | None) -> None:
    """Measures memory and time of pictures that eight threads decode at once, bounded and not.

    Memory is the peak above an idle process; a ratio is that to the unbounded way in the same round.
    """
    rows = measure(CASES, repeats)
    write_output(machine_facts() | {"threads": THREADS, "rows": rows}, as_json=as_json, json_file=json_file)
    if as_json:
        return
    columns = ("count", "way", "MiB", "ms", "cpu ms", "ratio", "cpu ratio")
    click.echo(f"{'pictures':<9}" + "".join(f"{column:>11}" for column in columns))
    for row in rows:
        click.echo(
            f"{row['pictures']:<9}{row['count']:>11}{row['way']:>11}{row['bytes'] / 2**20:>11.0f}"
            f"{row['ms']:>11.0f}{row['cpu_ms']:>11.0f}{row['ratio']:>11.2f}{row['cpu_ratio']:>11.2f}"
        )


def measure(cases: tuple[tuple[str, int, int, int], ...], repeats: int) -> list[dict[str, Any]]:
    """Returns one row a case and way: the largest peak, median times, median ratios to the unbounded way.

    Args:
        cases: name, width, height and number of the pictures of each.
        repeats: rounds; each begins with another way.

    Raises:
        MissingDependencyError: no Linux, whose /proc tells the peak.
        GateFailedError: a child failed, or found two mosaics for one picture.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise MissingDependencyError("the peak of memory is read from /proc, which this system does not have")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, Progress("rounds", repeats * len(cases)) as progress:
        folder = Path(name)
        small = _written(folder / "small.jpg", 1_000, 1_000)
        for pictures, width, height, count in cases:
            path = _written(folder / f"{pictures}.jpg", width, height)
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for turn in range(repeats):
                for way in turned(WAYS, turn):
                    found[way].append(_measured(path, small, way, count))
                progress.advance()
            rows.extend(_row(pictures, count, way, found) for way in WAYS)
    return rows


def _written(path: Path, width: int, height: int) -> Path:
    tiled_picture(width, height).save(path, quality=JPEG_QUALITY)
    return path


def _row(pictures: str, count: int, way: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    own, other = found[way], found[WAYS[0]]

    def ratio(key: str) -> float:
        return float(statistics.median(a[key] / b[key] for a, b in zip(own, other, strict=True)))

    return {
        "pictures": pictures,
        "count": count,
        "way": way,
        "bytes": max(lap["bytes"] for lap in own),
        "ms": statistics.median(lap["ms"] for lap in own),
        "cpu_ms": statistics.median(lap["cpu_ms"] for lap in own),
        "ratio": ratio("ms"),
        "cpu_ratio": ratio("cpu_ms"),
    }


def _measured(path: Path, small: Path, way: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, str(path), str(small), way, str(count), str(THREADS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GateFailedError(f"{path.name}, {way}: {done.stderr.strip()[-300:]}")
    lap: dict[str, Any] = json.loads(done.stdout)
    if not lap.pop("same"):
        raise GateFailedError(f"{path.name}, {way}: found two mosaics for one picture; nothing is reported")
    return lap
