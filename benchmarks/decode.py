"""Memory and time from a 100-megapixel JPEG to its mosaic, each way in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.machine import machine_facts
from benchmarks.output import output_options, write_output
from runtime.errors import MissingDependencyError

SIDE = 10_000
JPEG_QUALITY = 90
_ORIENTATION_TAG = 0x0112

# What each row measures: the file, and what makes a mosaic of it.
CASES = (
    ("upright", "ours"),
    ("turned", "ours"),
    ("progressive", "ours"),
    ("upright", "whole array"),
    ("turned", "whole array"),
)

# Peak memory is what the kernel says, above what it said once everything was imported and used.
_CHILD = """
import json, sys, time
import numpy as np
from PIL import Image, ImageOps
from runtime.patches.selection import select_patches
from runtime.pictures.mosaics import mosaic_from_picture

def whole_array(path):
    with Image.open(path) as image:
        return select_patches(np.array(ImageOps.exif_transpose(image).convert("RGB")))

def ours(path):
    return mosaic_from_picture(path).mosaics[0]

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key + ":"))

Image.MAX_IMAGE_PIXELS = None
path, small, way = sys.argv[1:]
work = ours if way == "ours" else whole_array
work(small)
with open("/proc/self/clear_refs", "w") as switch:
    switch.write("5")
idle = memory("VmRSS")
started, used = time.perf_counter(), time.process_time()
mosaic = work(path)
print(json.dumps({
    "ms": (time.perf_counter() - started) * 1e3, "cpu_ms": (time.process_time() - used) * 1e3,
    "bytes": memory("VmHWM") - idle, "mosaic": mosaic.tobytes().hex(),
}))
"""


@click.command()
@click.option("--side", type=click.IntRange(64, 14_000), default=SIDE, show_default=True, help="in pixels")
@output_options
def decode(side: int, as_json: bool, json_file: Path | None) -> None:
    """Measures memory and time from a large JPEG to its mosaic, against converting it as a whole.

    Memory is the peak above an idle process. A last column below 64 means: within 4.5 bytes a pixel + 64 MiB.
    """
    rows = picture_memory(side)
    write_output(machine_facts() | {"rows": rows}, as_json=as_json, json_file=json_file)
    if as_json:
        return
    click.echo(f"{'file':<13}{'way':<13}{'ms':>7}{'cpu ms':>8}{'bytes/pixel':>13}{'MiB over 4.5/pixel':>20}")
    for row in rows:
        click.echo(
            f"{row['file']:<13}{row['way']:<13}{row['ms']:>7.0f}{row['cpu_ms']:>8.0f}"
            f"{row['bytes_per_pixel']:>13.2f}{row['mib_over_4_5']:>20.1f}"
        )


def picture_memory(side: int) -> list[dict[str, Any]]:
    """Returns one row a case, once all ways gave the same mosaic of the same file.

    ``whole array`` is the usual way: Pillow turns and converts the picture, numpy copies it.

    Args:
        side: of the square picture, in pixels.

    Raises:
        MissingDependencyError: no Linux, whose /proc tells the peak.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise MissingDependencyError("the peak of memory is read from /proc, which this system does not have")
    with tempfile.TemporaryDirectory() as folder:
        files = _write_pictures(Path(folder), side)
        rows = [{"file": file, "way": way, **_measured(files, file, way)} for file, way in CASES]
    for row in rows:
        same = {other["mosaic"] for other in rows if other["file"] == row["file"]}
        if len(same) != 1:
            raise RuntimeError(f"{row['file']}: the mosaics differ: nothing is reported")
    for row in rows:
        del row["mosaic"]
        row["bytes_per_pixel"] = row["bytes"] / side**2
        row["mib_over_4_5"] = (row["bytes"] - 4.5 * side**2) / 2**20
    return rows


def _measured(files: dict[str, Path], file: str, way: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, str(files[file]), str(files["small"]), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{file}, {way}: {done.stderr.strip()[-500:]}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def _write_pictures(folder: Path, side: int) -> dict[str, Path]:
    large = tiled_picture(side, side)
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = 6
    options: dict[str, dict[str, Any]] = {
        "upright": {},
        "turned": {"exif": exif},
        "progressive": {"progressive": True},
    }
    files = {name: folder / f"{name}.jpg" for name in (*options, "small")}
    for name, values in options.items():
        large.save(files[name], quality=JPEG_QUALITY, **values)
    Image.fromarray(_tile()).save(files["small"])
    return files


def tiled_picture(width: int, height: int) -> Image.Image:
    """Returns a picture of noise of all strengths, darker and darker, so that no two parts are alike."""
    tile = Image.fromarray(_tile())
    picture = Image.new("RGB", (width, height))
    for top in range(0, height, tile.height):
        for left in range(0, width, tile.width):
            brightness = 255 - (3 * top + left) * 90 // (4 * max(width, height))
            picture.paste(tile.point([value * brightness // 255 for value in range(256)] * 3), (left, top))
    return picture


def _tile() -> np.ndarray[Any, np.dtype[np.uint8]]:
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:1000, 0:1000]
    smooth = 127 + 60 * np.sin(rows / 97.0) * np.cos(columns / 61.0)
    noise = draw.normal(0, 1, (1000, 1000, 3)) * (20 * rows / 1000)[..., None]
    tile: np.ndarray[Any, np.dtype[np.uint8]] = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
    return tile
