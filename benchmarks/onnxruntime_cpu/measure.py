"""Latency of every contestant at one batch size, each in a process of its own, laps in turns.

Several sessions in one process would be timed by how their memory happens to lie beside each other's: the
same graph took 47 ms alone and 78 ms as one of sixteen (ViT-B/32, batch 1). Even alone a process has luck
with its memory, so every round starts each contestant anew; and the machine itself is faster at one time than
at another, so a round's laps go in turns through its processes, and lap is compared with lap.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.laps import Lap, OthersShare, turned
from benchmarks.onnxruntime_cpu.contestants import EAGER, HUGE_PAGES, OPENVINO, SHIPPED
from benchmarks.onnxruntime_cpu.graphs import Graphs
from benchmarks.onnxruntime_cpu.session import Session, outputs
from export.steps.child import run_in_child
from runtime.console import Progress
from runtime.errors import GateFailedError

# Laps of one contestant by round.
Rounds = list[list[Lap]]
GOAL = 1.05
# Left out of the goal and reported beside the others: another library, and what helps every contestant.
BESIDE = (OPENVINO, HUGE_PAGES)
_RESAMPLES = 2000


def measure(
    names: Sequence[str], graphs: Graphs, batch: int, *, rounds: int, laps: int, threads: int
) -> dict[str, Any]:
    """Returns one table as JSON values; times are milliseconds of one run of the batch.

    Args:
        names: of the contestants; the shipped engine is one.
        graphs: the model.
        batch: mosaics in a run.
        rounds: processes of each contestant, one after another.
        laps: timed in each process.
        threads: CPU threads of each.

    Raises:
        GateFailedError: the shipped engine leaves FP32 parity with PyTorch, or a process ended.
    """
    title = f"{graphs.backbone}, batch {batch}"
    reference = run_in_child(EAGER, outputs, EAGER, graphs, batch, threads)
    found: dict[str, Rounds] = {name: [] for name in names}
    refused: dict[str, str] = {}
    others = OthersShare()
    with Progress(title, rounds * laps) as progress:
        for turn in range(rounds):
            with ExitStack() as stack:
                sessions = []
                for name in turned(names, turn):
                    session = stack.enter_context(Session(name, graphs, reference, threads))
                    if session.refusal is not None:
                        refused[name] = session.refusal
                    else:
                        found[name].append([])
                        sessions.append(session)
                for lap in range(laps):
                    for session in turned(sessions, lap):
                        found[session.name][-1].append(session.lap())
                    progress.advance()
    return {
        "batch": batch,
        "rounds": rounds,
        "laps": laps,
        "others_share_of_machine": others.share(),
    } | table({name: own for name, own in found.items() if name not in refused}, refused)


def table(found: dict[str, Rounds], refused: dict[str, str]) -> dict[str, Any]:
    """Returns what the laps say, as JSON values.

    Raises:
        GateFailedError: the shipped engine was refused.
    """
    if SHIPPED in refused:
        raise GateFailedError(f"the shipped engine leaves FP32 parity: {refused[SHIPPED]}")
    rows = {name: _row(own, found[SHIPPED]) for name, own in found.items()}
    rivals = {name: row["ratio"] for name, row in rows.items() if name not in BESIDE}
    fastest = min(rivals, key=lambda name: rivals[name])
    return {
        "refused": refused,
        "contestants": rows,
        "fastest": fastest,
        "shipped_over_fastest": 1 / rivals[fastest],
        "goal": GOAL,
    }


def _row(own: Rounds, shipped: Rounds) -> dict[str, float]:
    laps = [lap for turn in own for lap in turn]
    walls = [1e3 * lap.wall for lap in laps]
    # Lap by lap: what disturbs one disturbs its neighbour too. Above 1, the shipped engine takes less.
    pairs = [list(zip(mine, theirs, strict=True)) for mine, theirs in zip(own, shipped, strict=True)]
    ratios = np.array([[mine.wall / theirs.wall for mine, theirs in turn] for turn in pairs])
    low, high = _interval(ratios)
    return {
        "wall_ms": statistics.median(walls),
        "least_ms": min(walls),
        "p90_ms": float(np.percentile(walls, 90)),
        "cpu_ms": 1e3 * statistics.median(lap.cpu for lap in laps),
        "ratio": float(np.median(ratios)),
        "ratio_low": low,
        "ratio_high": high,
        "cpu_ratio": statistics.median(mine.cpu / theirs.cpu for turn in pairs for mine, theirs in turn),
    }


def _interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the median; rounds are drawn, since luck is a process's."""
    draws = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile([np.median(ratios[drawn]) for drawn in draws], (2.5, 97.5))
    return float(low), float(high)
