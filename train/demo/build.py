"""Builds the demo data set: fit the generators, cut the crops, write both classes, commit by one rename.

Both pictures of a pair come from the same box of the same photograph, lose the same margin and are
saved by the same call: only the generator in between tells them apart. Loads torch when it builds.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.console import Progress
from runtime.errors import DataError, MissingDependencyError, UsageError
from runtime.machine import usable_cpus
from train.demo.captions import caption
from train.demo.photographs import Box, LoadedPhotograph, load_photographs
from train.demo.settings import (
    FAMILIES,
    LARGEST_SIDE,
    MARGIN,
    SCHEMA,
    SEEN_FAMILIES,
    SIDE_STEP,
    SMALLEST_SIDE,
    UNSEEN_FAMILY,
    DemoSettings,
)

if TYPE_CHECKING:
    from train.demo.generators import Generator

STAMP = "demo.json"
CAPTIONS = "captions.json"
SOURCES = "sources.json"
CLASS_FOLDERS = ("0_real", "1_fake")


@dataclass(frozen=True)
class DemoSummary:
    """What ``build_demo_data`` leaves behind.

    Attributes:
        folder: the data set.
        already_done: True if it was there, complete and with these settings, and nothing was written.
        counts: pictures, both classes together, by split and family.
        psnr_db: by family, how close the fakes of the test are to their photographs, mean in dB.
        seconds: time taken.
    """

    folder: Path
    already_done: bool
    counts: dict[str, dict[str, int]]
    psnr_db: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class _Draw:
    """One pair of pictures: the photograph, the box read from it (margin included), the file name."""

    photograph: LoadedPhotograph
    box: Box
    file_name: str


def build_demo_data(folder: Path, settings: DemoSettings, *, overwrite: bool = False) -> DemoSummary:
    """Writes the demo data set, or finds it done.

    Args:
        folder: appears by one rename when everything is in it; an earlier stop leaves nothing there.
        settings: sizes, effort and seed.
        overwrite: replace a demo data set of other settings. A folder of anything else is never touched.

    Raises:
        UsageError: ``folder`` holds something else, or a demo data set of other settings.
        MissingDependencyError: torch, scikit-image or scikit-learn is not installed.
        DataError: a photograph is not the one expected, or a finished data set lost files.
    """
    started = time.monotonic()
    stamp = _existing_stamp(folder)
    if stamp is not None and not overwrite:
        _require_same(folder, stamp, settings)
        return DemoSummary(
            folder, True, settings.image_counts(), stamp["psnr_db"], time.monotonic() - started
        )
    photographs = load_photographs()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        psnr_db = _write_all(temporary, settings, photographs)
        temporary.chmod(0o755)
        _commit(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return DemoSummary(folder, False, settings.image_counts(), psnr_db, time.monotonic() - started)


def image_sources(folder: Path) -> dict[str, str]:
    """Path of each picture below ``folder`` (posix) -> name of the photograph it came from.

    This is what a bootstrap by source file groups by.

    Raises:
        DataError: ``folder`` is not a demo data set.
    """
    try:
        records = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(
            f"{folder} has no readable {SOURCES} ({err}); expected a folder written by demo-data"
        ) from err
    return {path: record["source"] for path, record in records.items()}


def _existing_stamp(folder: Path) -> dict[str, Any] | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(
            f"{folder} exists and is not a demo data set (no readable {STAMP}); name a new folder"
        ) from err
    if not isinstance(stamp, dict) or stamp.get("kind") != "dgsnet-demo-data":
        raise UsageError(f"the {STAMP} in {folder} is not one of demo-data; name a new folder")
    return stamp


def _require_same(folder: Path, stamp: dict[str, Any], settings: DemoSettings) -> None:
    wanted = {"schema": SCHEMA, **settings.to_json()}
    found = {"schema": stamp.get("schema"), **stamp.get("settings", {})}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UsageError(
                f"{folder} holds demo data made with {name} = {found.get(name)}, asked for {value}; "
                "name another folder or replace it with --overwrite"
            )
    lost = [path for path in image_sources(folder) if not (folder / path).is_file()]
    if lost or not (folder / CAPTIONS).is_file():
        missing = lost[0] if lost else CAPTIONS
        raise DataError(f"{folder} has lost {missing} since it was made; make it again with --overwrite")


def _commit(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    os.replace(folder, aside)
    temporary.rename(folder)
    shutil.rmtree(aside)


def _write_all(
    folder: Path, settings: DemoSettings, photographs: Sequence[LoadedPhotograph]
) -> dict[str, float]:
    try:
        from train.demo.generators import deterministic_torch, fit_generators
    except ImportError as err:
        raise MissingDependencyError(
            f"demo data fits its generators with torch, which cannot be imported ({err}); "
            'install it with: pip install "dgsnet[train]"'
        ) from err
    workers = min(len(FAMILIES), usable_cpus())
    with Progress("fitting generators", len(FAMILIES) * settings.fit_steps) as progress:
        generators = fit_generators(
            FAMILIES,
            [photo.region("train") for photo in photographs if "train" in photo.source.regions],
            seed=settings.seed,
            steps=settings.fit_steps,
            width=settings.width,
            code_channels=settings.code_channels,
            batch=settings.fit_batch,
            crop=settings.fit_crop,
            workers=workers,
            on_step=progress.advance,
        )
    counts = settings.image_counts()
    captions: dict[str, str] = {}
    sources: dict[str, dict[str, Any]] = {}
    psnr_db: dict[str, float] = {}
    with (
        Progress("writing pictures", sum(sum(split.values()) for split in counts.values())) as progress,
        deterministic_torch(settings.seed),
        ThreadPoolExecutor(workers) as pool,
    ):
        for split, family in [(part, name) for part in counts for name in counts[part]]:
            draws = list(_draws(settings, split, family, photographs))
            write = partial(_write_pair, folder / split / family, generators[family])
            errors = []
            for draw, (written, error) in zip(draws, pool.map(write, draws), strict=True):
                errors.append(error)
                for path, text in written.items():
                    name = path.relative_to(folder).as_posix()
                    captions[name] = text
                    sources[name] = {"source": draw.photograph.source.name, "box": draw.box}
                progress.advance(len(written), note=f"{split} {family}")
            psnr_db[family] = round(10 * float(np.log10(255**2 / max(sum(errors) / len(errors), 1e-9))), 2)
    _write_json(folder / CAPTIONS, captions)
    _write_json(folder / SOURCES, sources)
    _write_json(folder / STAMP, _stamp(settings, photographs, psnr_db))
    return psnr_db


def _draws(
    settings: DemoSettings, split: str, family: str, photographs: Sequence[LoadedPhotograph]
) -> Iterator[_Draw]:
    rng = np.random.default_rng([settings.seed, *split.encode(), 0, *family.encode()])
    usable = [photo for photo in photographs if split in photo.source.regions]
    for index in range(settings.per_class(split)):
        photo = usable[index % len(usable)]
        left, top, right, bottom = photo.source.regions[split]
        width, height = _side(rng, right - left), _side(rng, bottom - top)
        x = left + int(rng.integers(right - left - width + 1))
        y = top + int(rng.integers(bottom - top - height + 1))
        yield _Draw(photo, (x, y, x + width, y + height), f"{photo.source.name}_{index:04d}.png")


def _side(rng: np.random.Generator, room: int) -> int:
    largest = min(LARGEST_SIDE, room - 2 * MARGIN)
    steps = (largest - SMALLEST_SIDE) // SIDE_STEP
    return SMALLEST_SIDE + SIDE_STEP * int(rng.integers(steps + 1)) + 2 * MARGIN


def _write_pair(folder: Path, generator: Generator, draw: _Draw) -> tuple[dict[Path, str], float]:
    """Writes both pictures of a draw; returns their captions by path, and the mean squared error."""
    from train.demo.generators import generate

    left, top, right, bottom = draw.box
    crop = draw.photograph.pixels[top:bottom, left:right]
    inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    real, fake = crop[inner], generate(generator, crop)[inner]
    captions = {}
    for class_folder, picture in zip(CLASS_FOLDERS, (real, fake), strict=True):
        path = folder / class_folder / draw.file_name
        _save(path, picture)
        captions[path] = caption(draw.photograph.source.subject, picture)
    return captions, float(np.square(real.astype(np.float64) - fake).mean())


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(picture)).save(path, format="PNG", compress_level=3)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _stamp(
    settings: DemoSettings, photographs: Sequence[LoadedPhotograph], psnr_db: dict[str, float]
) -> dict[str, Any]:
    return {
        "kind": "dgsnet-demo-data",
        "schema": SCHEMA,
        "settings": settings.to_json(),
        "margin": MARGIN,
        "seen_families": list(SEEN_FAMILIES),
        "unseen_families": [UNSEEN_FAMILY],
        "counts": settings.image_counts(),
        "psnr_db": psnr_db,
        "versions": {
            name: version(name) for name in ("torch", "numpy", "pillow", "scikit-image", "scikit-learn")
        },
        "photographs": [
            {
                "name": photo.source.name,
                "package": photo.source.package,
                "file": photo.source.path,
                "sha256": photo.sha256,
                "licence": photo.source.licence,
                "regions": photo.source.regions,
            }
            for photo in photographs
        ],
    }
