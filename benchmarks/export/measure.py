"""One contestant in a child process, watched from here: wall time, CPU time and memory by phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.export.contestants import phase_json
from benchmarks.export.memory import TreeMemory
from export.steps.child import run_in_child

GOAL_SECONDS, GOAL_BYTES = 180.0, 6_000_000_000


def measure(name: str, work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Returns what one contestant took.

    ``seconds`` is the wall time without the phases that compare numbers, which ``numeric_seconds`` has, and
    with the start of the process; ``peak_bytes`` is the largest sum over its process tree at any time outside
    them, ``numeric_peak_bytes`` inside.
    """
    started = time.monotonic()
    with TreeMemory() as memory:
        found = run_in_child(name, work, *arguments)
    wall = time.monotonic() - started
    phases = [phase_json(p, memory.peak(p.started, p.started + p.seconds)) for p in found["phases"]]
    spans = [(p.started, p.started + p.seconds) for p in found["phases"] if p.is_numeric]
    numeric = sum(end - start for start, end in spans)
    building = [size for when, size in memory.samples if not any(a <= when <= b for a, b in spans)]
    return {
        "name": name,
        "seconds": round(wall - numeric, 2),
        "numeric_seconds": round(numeric, 2),
        "cpu_seconds": round(found["cpu_seconds"], 2),
        "peak_bytes": max(building, default=0),
        "numeric_peak_bytes": max((memory.peak(*span) for span in spans), default=0),
        "largest_process_bytes": memory.largest_process,
        "phases": phases,
        "files": found["files"],
    }


def missed_goals(row: dict[str, Any]) -> list[str]:
    """Returns a text for each goal that a build missed; the goals are those for ViT-L/14 on two cores."""
    missed = []
    if row["seconds"] > GOAL_SECONDS:
        missed.append(f"{row['name']}: took {row['seconds']:.0f} s, expected at most {GOAL_SECONDS:.0f} s")
    most = max(row["peak_bytes"], row["numeric_peak_bytes"])
    if most > GOAL_BYTES:
        missed.append(f"{row['name']}: {most / 1e9:.2f} GB, expected at most {GOAL_BYTES / 1e9:.0f} GB")
    return missed
