"""Measures an opened detector: each phase on its own, the engine per batch size, and the whole stream."""

from __future__ import annotations

import io
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.detection import Detection
from runtime.detector import Detector
from runtime.errors import DataError
from runtime.machine import cuda_device, installed_version, usable_cpus

SCHEMA_VERSION = 1
_PERCENTILES = (50, 90, 99)
_SEED = 20


@dataclass(frozen=True)
class BenchPlan:
    """What is measured.

    Attributes:
        batch_sizes: batch sizes of the engine.
        runs: timed runs per batch size, and pictures timed per phase.
        warmup: runs before the timed ones; the first of them is reported as the cold one.
        pictures: pictures of the whole stream.
    """

    batch_sizes: tuple[int, ...]
    runs: int
    warmup: int
    pictures: int


def synthetic_jpeg(width: int, height: int) -> bytes:
    """Returns the bytes of a JPEG from a fixed seed: a soft ramp with noise that grows along it."""
    from PIL import Image

    draw = np.random.default_rng(_SEED)
    ramp = np.linspace(0.0, 1.0, width)[:, None]
    pixels = np.empty((height, width, 3), np.uint8)
    for row in pixels:  # one at a time: in float64 a large picture takes gigabytes
        row[:] = 40 + ramp * draw.integers(90, 211, (width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def measure(
    detector: Detector, sources: Sequence[str | bytes], plan: BenchPlan, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Returns what was measured, as JSON; times are milliseconds of wall clock, monotonic.

    Phases: ``decode`` and ``select`` are a picture's, one after another in this thread; ``copy`` gathers the
    mosaics of a batch into one array; ``infer`` is one run of the engine, transfers to a GPU included.

    Args:
        detector: the opened bundle.
        sources: pictures, used in turns.
        plan: what to measure.
        advance: called after each step with a note; ``step_count`` says how often.

    Raises:
        DataError: a picture cannot be judged.
        EngineLoadError: the engine failed.
    """
    preparation, mosaics = _preparation(detector, sources, plan, advance)
    batches = []
    for size in plan.batch_sizes:
        batches.append(_batches(detector, mosaics, size, plan))
        advance(f"batch {size}")
    stream = _stream(detector, sources, plan)
    advance("stream")
    manifest, report = detector.bundle.manifest, detector.backend_report
    return {
        "schema": SCHEMA_VERSION,
        "digest": manifest.digest,
        "backend": report.name,
        "engine": report.engine,
        "precision": report.entry.precision,
        "environment": _environment(),
        "warmup": plan.warmup,
        "runs": plan.runs,
        "phases": preparation,
        "batches": batches,
        "stream": stream,
    }


def step_count(plan: BenchPlan) -> int:
    """Returns how often ``measure`` calls ``advance``."""
    return plan.runs + len(plan.batch_sizes) + 1


def _preparation(
    detector: Detector, sources: Sequence[str | bytes], plan: BenchPlan, advance: Callable[[str], None]
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    decode_ms: list[float] = []
    select_ms: list[float] = []
    mosaics: list[NDArray[np.uint8]] = []
    for number, source in enumerate(itertools.islice(itertools.cycle(sources), plan.warmup + plan.runs)):
        ready = detector.prepare(source)
        if isinstance(ready, Detection):
            raise DataError(_reason(ready))
        if number >= plan.warmup:
            decode_ms.append(ready.decode_ms)
            select_ms.append(ready.select_ms)
            advance("decode and select")
        if len(mosaics) < max(plan.batch_sizes):
            mosaics.append(ready.mosaics[0])
    return {"decode_ms": _summary(decode_ms), "select_ms": _summary(select_ms)}, np.stack(mosaics)


def _batches(detector: Detector, mosaics: NDArray[np.uint8], size: int, plan: BenchPlan) -> dict[str, Any]:
    rows = [mosaics[k % len(mosaics)][None] for k in range(size)]
    copy_ms, infer_ms = [], []
    for _ in range(plan.warmup + plan.runs):
        started = time.perf_counter()
        batch = np.concatenate(rows)
        copied = time.perf_counter()
        detector.backend.run(batch)
        copy_ms.append((copied - started) * 1e3)
        infer_ms.append((time.perf_counter() - copied) * 1e3)
    timed = slice(plan.warmup, None)
    total_s = (sum(copy_ms[timed]) + sum(infer_ms[timed])) / 1e3
    return {
        "batch": size,
        "cold_ms": infer_ms[0] if plan.warmup else None,
        "copy_ms": _summary(copy_ms[timed]),
        "infer_ms": _summary(infer_ms[timed]),
        "pictures_per_second": size * plan.runs / total_s,
    }


def _stream(detector: Detector, sources: Sequence[str | bytes], plan: BenchPlan) -> dict[str, Any]:
    def pictures() -> Iterator[str | bytes]:
        return itertools.islice(itertools.cycle(sources), plan.pictures)

    started, cpu = time.perf_counter(), time.process_time()
    for detection in detector.stream(pictures(), max_wait_ms=None):
        if detection.error is not None:
            raise DataError(_reason(detection))
    elapsed = time.perf_counter() - started
    return {
        "pictures": plan.pictures,
        "batch": detector.batch_size,
        "seconds": elapsed,
        "cpu_seconds": time.process_time() - cpu,
        "pictures_per_second": plan.pictures / elapsed,
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    """Returns mean, extremes and percentiles; a percentile is the smallest value that so many reach."""
    ranked = np.percentile(values, _PERCENTILES, method="inverted_cdf")
    result = {f"p{name}": float(value) for name, value in zip(_PERCENTILES, ranked, strict=True)}
    return {"mean": float(np.mean(values)), "min": min(values), **result, "max": max(values)}


def _reason(detection: Detection) -> str:
    message = detection.error.message if detection.error is not None else "no verdict"
    return f"bench: {message}; leave it out of the pictures"


def _environment() -> dict[str, Any]:
    device = cuda_device()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": usable_cpus(),
        "gpu": device.name if device is not None else None,
        "numpy": np.__version__,
        "pillow": installed_version("pillow"),
        "onnxruntime": installed_version("onnxruntime", "onnxruntime-gpu"),
    }
