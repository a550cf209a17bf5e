"""Parity first, then laps in turns: latency of every contestant at each batch size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.onnxruntime_cpu.contestants import SHIPPED, Outputs, Run
from benchmarks.training.laps import Lap, run_in_turns
from runtime.spec import MOSAIC_SIDE
from runtime.tolerances import TOLERANCES, logit_tolerance

GOAL = 1.05
# Left out of the goal: reported beside the others.
BESIDE = ("OpenVINO",)


def mosaics(count: int) -> NDArray[np.uint8]:
    """Returns noise, uint8 ``[count, 224, 224, 3]``; the time does not depend on what a picture shows."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, MOSAIC_SIDE, MOSAIC_SIDE, 3), dtype=np.uint8)


def refusals(contestants: Mapping[str, Run], reference: Outputs, images: NDArray[np.uint8]) -> dict[str, str]:
    """Returns whom a timing would mean nothing for, and why: logits other than the reference's."""
    found = {}
    allowed = logit_tolerance(TOLERANCES, "fp32")
    for name, run in contestants.items():
        logits = run(images)[0]
        difference = float(np.abs(logits - reference[0]).max())
        # Not ">": NaN must not pass.
        if not difference <= allowed:
            found[name] = f"max |difference of logits| {difference:.3g}, allowed {allowed:.3g}"
    return found


def measure(contestants: Mapping[str, Run], batch: int, repeats: int, title: str) -> dict[str, Any]:
    """Returns one table as JSON values; times are milliseconds of one run of the batch."""
    images = mosaics(batch)
    laps, others = run_in_turns(
        {name: partial(run, images) for name, run in contestants.items()}, repeats, title
    )
    rows = {name: _row(own, laps[SHIPPED]) for name, own in laps.items()}
    rivals = {name: row["wall_ms"] for name, row in rows.items() if name not in BESIDE}
    fastest = min(rivals, key=lambda name: rivals[name])
    return {
        "batch": batch,
        "repeats": repeats,
        "others_share_of_machine": others,
        "contestants": rows,
        "fastest": fastest,
        "shipped_over_fastest": 1 / rows[fastest]["ratio"],
        "goal": GOAL,
    }


def _row(own: list[Lap], shipped: list[Lap]) -> dict[str, float]:
    walls = [1e3 * lap.wall for lap in own]
    pairs = list(zip(own, shipped, strict=True))
    return {
        "wall_ms": statistics.median(walls),
        "least_ms": min(walls),
        "p90_ms": float(np.percentile(walls, 90)),
        "cpu_ms": 1e3 * statistics.median(lap.cpu for lap in own),
        # Round by round: what disturbs a round disturbs all of it. Above 1, the shipped engine takes less.
        "ratio": statistics.median(lap.wall / base.wall for lap, base in pairs),
        "cpu_ratio": statistics.median(lap.cpu / base.cpu for lap, base in pairs),
    }
