"""Rounds of processes: latency of every contestant at one batch size, each process with one contestant.

Several sessions in one process would be timed by how their memory happens to lie beside each other's: the
same graph took 47 ms alone and 78 ms as one of sixteen (ViT-B/32, batch 1). Even alone a process has luck
with its memory, so every round starts each contestant anew.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from benchmarks.laps import run_in_turns
from benchmarks.onnxruntime_cpu.contestants import EAGER, ENVIRONMENT, HUGE_PAGES, OPENVINO, SHIPPED
from benchmarks.onnxruntime_cpu.graphs import Graphs
from benchmarks.onnxruntime_cpu.session import Session, outputs, session
from export.steps.child import run_in_child
from runtime.errors import GateFailedError

GOAL = 1.05
_RESAMPLES = 10_000
# Left out of the goal and reported beside the others: another library, and what helps every contestant.
BESIDE = (OPENVINO, HUGE_PAGES)


def measure(
    names: Sequence[str], graphs: Graphs, batch: int, *, rounds: int, laps: int, threads: int
) -> dict[str, Any]:
    """Returns one table as JSON values; times are milliseconds of one run of the batch.

    Args:
        names: of the contestants; the shipped engine is one.
        graphs: the model.
        batch: mosaics in a run.
        rounds: counted processes of each contestant; one more warms the page cache up.
        laps: timed in each process.
        threads: CPU threads of each.

    Raises:
        GateFailedError: the shipped engine leaves FP32 parity with PyTorch, or a contestant was timed in one
            round and refused in another.
    """
    title = f"{graphs.backbone}, batch {batch}"
    reference = run_in_child(EAGER, outputs, EAGER, graphs, batch, threads)
    found: dict[str, list[Session]] = {name: [] for name in names}

    def one_process(name: str) -> None:
        with _environment(ENVIRONMENT.get(name, {})):
            found[name].append(run_in_child(name, session, name, graphs, reference, laps, threads))

    _, others = run_in_turns({name: partial(one_process, name) for name in names}, rounds, title)
    return {"batch": batch, "rounds": rounds, "laps": laps, "others_share_of_machine": others} | table(
        {name: processes[1:] for name, processes in found.items()}
    )


def table(found: dict[str, list[Session]]) -> dict[str, Any]:
    """Returns what the processes of the counted rounds say, as JSON values.

    Raises:
        GateFailedError: as of ``measure``.
    """
    refused = {name: own[0].refusal for name, own in found.items() if own[0].refusal is not None}
    for name, own in found.items():
        if len({each.refusal for each in own}) != 1:
            raise GateFailedError(f"{name}: {own[0].refusal or 'timed'} in one round and not in another")
    if SHIPPED in refused:
        raise GateFailedError(f"the shipped engine leaves FP32 parity: {refused[SHIPPED]}")
    rows = {name: _row(own, found[SHIPPED]) for name, own in found.items() if name not in refused}
    rivals = {name: row["ratio"] for name, row in rows.items() if name not in BESIDE}
    fastest = min(rivals, key=lambda name: rivals[name])
    return {
        "refused": refused,
        "contestants": rows,
        "fastest": fastest,
        "shipped_over_fastest": 1 / rivals[fastest],
        "goal": GOAL,
    }


def _row(own: list[Session], shipped: list[Session]) -> dict[str, Any]:
    walls = [1e3 * lap.wall for process in own for lap in process.laps]
    pairs = list(zip(map(_medians, own), map(_medians, shipped), strict=True))
    ratios = [mine[0] / theirs[0] for mine, theirs in pairs]
    low, high = _interval(ratios)
    return {
        "wall_ms": statistics.median(1e3 * mine[0] for mine, _ in pairs),
        "least_ms": min(walls),
        "p90_ms": float(np.percentile(walls, 90)),
        "cpu_ms": statistics.median(1e3 * mine[1] for mine, _ in pairs),
        # Round by round: what disturbs a round disturbs all of it. Above 1, the shipped engine takes less.
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "cpu_ratio": statistics.median(mine[1] / theirs[1] for mine, theirs in pairs),
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _interval(ratios: list[float]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the median over rounds."""
    draws = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _medians(process: Session) -> tuple[float, float]:
    """Returns the medians of one process's laps, (wall, CPU) seconds."""
    return statistics.median(lap.wall for lap in process.laps), statistics.median(
        lap.cpu for lap in process.laps
    )
