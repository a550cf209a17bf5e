"""Laps of several contestants in turns: wall time, CPU time, and how busy the machine was with other work."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runtime.console import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Lap:
    """One lap, in seconds.

    Attributes:
        wall: by the clock.
        cpu: user and system time of this process and of its children that have ended.
    """

    wall: float
    cpu: float


def run_in_turns(
    contestants: Mapping[str, Callable[[], object]], repeats: int, title: str
) -> tuple[dict[str, list[Lap]], float | None]:
    """Returns the laps of every contestant, and the share of the machine that others had meanwhile.

    A first round warms up and does not count. Each round begins with another contestant.

    Args:
        contestants: what to do in a lap; children that it starts have ended when it returns.
        repeats: counted rounds.
        title: shown while this runs.
    """
    names = list(contestants)
    laps: dict[str, list[Lap]] = {name: [] for name in names}
    others = OthersShare()
    with Progress(title, (repeats + 1) * len(names)) as progress:
        for turn in range(repeats + 1):
            if turn == 1:
                others = OthersShare()
            for name in turned(names, turn):
                lap = time_lap(contestants[name])
                progress.advance()
                if turn:
                    laps[name].append(lap)
    return laps, others.share()


def turned(items: Sequence[T], turn: int) -> list[T]:
    """Returns all items, beginning with another one each turn, so that none is always the first."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


class OthersShare:
    """How much of the machine processes other than this one and its ended children have from now on."""

    def __init__(self) -> None:
        self._machine, self._own = _machine_seconds(), _cpu_seconds()

    def share(self) -> float | None:
        """Returns their share so far, None where the system does not say."""
        after = _machine_seconds()
        total, busy = after[0] - self._machine[0], after[1] - self._machine[1]
        return max(busy - (_cpu_seconds() - self._own), 0.0) / total if total else None


def time_lap(work: Callable[[], object]) -> Lap:
    """Returns what ``work`` takes."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    work()
    return Lap(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _machine_seconds() -> tuple[float, float]:
    """Returns (all, busy) seconds of all cores since the machine's start; zeros where Linux does not say."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0, 0.0
    # user, nice, system, idle, iowait, irq, softirq, steal: proc(5)
    ticks = [int(field) for field in statistics.read_text().splitlines()[0].split()[1:9]]
    per_second = os.sysconf("SC_CLK_TCK")
    return sum(ticks) / per_second, (sum(ticks) - ticks[3] - ticks[4]) / per_second
