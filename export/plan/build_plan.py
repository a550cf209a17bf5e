"""The plan of a build: every step's forecast against what this machine has left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engine.options import BuildOptions
from export.plan.forecast import GB, MB, StepForecast, engine_forecast, graphs_forecast
from export.plan.room import Room, room_for
from export.plan.weights import GraphSizes, graph_sizes
from export.source import BUNDLE, source_kind
from runtime.errors import EngineBuildError, UsageError
from runtime.names import printable_name

NO_CHECK_FLAG = "--no-plan-check"


@dataclass(frozen=True)
class BuildPlan:
    """What a build will take and what there is.

    Attributes:
        source: the path that is built from.
        sizes: of its graphs.
        steps: one after another.
        room: what the machine has left.
    """

    source: str
    sizes: GraphSizes
    steps: tuple[StepForecast, ...]
    room: Room

    @property
    def peak_bytes(self) -> int:
        """The largest step's peak: the steps come one after another."""
        return max(step.peak_bytes for step in self.steps)

    @property
    def disk_bytes(self) -> int:
        """What all steps leave on the disk, at its fullest."""
        return sum(step.disk_bytes for step in self.steps)

    @property
    def minutes(self) -> tuple[float, float]:
        """Least and most, all steps together."""
        return sum(step.minutes[0] for step in self.steps), sum(step.minutes[1] for step in self.steps)

    def shortages(self) -> list[str]:
        """Returns what there is too little of, in words; empty when the build fits."""
        short = []
        memory, swap = self.room.memory_bytes, self.room.swap_bytes
        if memory is not None and self.peak_bytes > memory + swap:
            with_swap = f" and {_size(swap)} of swap" if swap else ""
            short.append(f"about {_size(self.peak_bytes)} of memory, found {_size(memory)} free{with_swap}")
        if self.disk_bytes > self.room.disk_bytes:
            short.append(f"about {_size(self.disk_bytes)} of disk, found {_size(self.room.disk_bytes)} free")
        return short

    def require_fits(self) -> None:
        """Refuses a build that cannot fit.

        Raises:
            EngineBuildError: what is short, and what to do.
        """
        short = self.shortages()
        if short:
            raise EngineBuildError(
                f"{self.source}: the build needs {'; '.join(short)}; free some, or try with {NO_CHECK_FLAG}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as ``build-engine --plan --json`` prints it."""
        return {
            "schema": 1,
            "source": self.source,
            "fits": not self.shortages(),
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "minutes": [round(minutes, 2) for minutes in self.minutes],
            "measured": all(step.is_measured for step in self.steps),
            "graphs": {
                "fp32_bytes": self.sizes.fp32_bytes,
                "fp16_bytes": self.sizes.fp16_bytes,
                "known_from": self.sizes.known_from,
            },
            "steps": [step.to_json() for step in self.steps],
            "free": {
                "memory_bytes": self.room.memory_bytes,
                "swap_bytes": self.room.swap_bytes,
                "disk_bytes": self.room.disk_bytes,
            },
        }

    def lines(self) -> Iterator[str]:
        """Yields the plan for a person."""
        memory = self.room.memory_bytes
        free = "not known" if memory is None else f"{_size(memory)}, swap {_size(self.room.swap_bytes)}"
        yield f"memory   about {_size(self.peak_bytes)} at most; free: {free}"
        yield f"disk     about {_size(self.disk_bytes)}; free: {_size(self.room.disk_bytes)}"
        yield f"time     {_minutes(self.minutes)}"
        yield f"graphs   FP32 {_size(self.sizes.fp32_bytes)}, FP16 {_size(self.sizes.fp16_bytes)}, from " + (
            self.sizes.known_from
        )
        for step in self.steps:
            basis = "" if step.is_measured else "; an estimate, never measured on a device"
            yield (
                f"step     {step.name}: {_size(step.peak_bytes)} of memory, {_size(step.disk_bytes)} of "
                f"disk, {_minutes(step.minutes)}{basis}"
            )
        short = self.shortages()
        yield f"verdict  does not fit: needs {'; '.join(short)}" if short else "verdict  fits"
        if not short and memory is not None and self.peak_bytes > memory:
            yield "warning  it will use swap, which is slow; end other programs first"


def plan_build(
    source: Path,
    output: Path | None,
    backends: tuple[str, ...],
    options: BuildOptions,
    *,
    room: Room | None = None,
) -> BuildPlan:
    """Returns the plan of ``build-engine``, without building or importing any TensorRT.

    Args:
        source: a run, a bundle, a contract ONNX or the authors' .pth.
        output: the bundle to write; None where the source is a bundle, which is extended in place.
        backends: "onnxruntime", "tensorrt", "tensorrt-rtx".
        options: of the engines.
        room: what is free; None asks this machine.

    Raises:
        UsageError: the source is of no known kind, or a bundle without the graph that is needed.
        CheckpointError, ManifestError, SpecError: the source is damaged.
    """
    sizes = graph_sizes(source)
    extends = source_kind(source) == BUNDLE
    steps = [] if extends else [graphs_forecast(sizes.fp32_bytes, sizes.fp16_bytes)]
    graph = sizes.fp16_bytes if options.precision == "fp16" else sizes.fp32_bytes
    engines = [backend for backend in backends if backend != "onnxruntime"]
    if extends and engines and not graph:
        raise UsageError(
            f"{source}: holds no {options.precision} graph to build from; build the bundle again"
        )
    steps += [
        engine_forecast(
            backend,
            graph,
            profiles=len(options.engine_profiles),
            workspace_bytes=options.workspace_bytes,
            # Beside a bundle first, then a copy of it inside: both are there for a moment.
            copies=2 if extends else 1,
        )
        for backend in engines
    ]
    if not steps:
        raise UsageError("onnxruntime runs a bundle's model.onnx as it is; name tensorrt or tensorrt-rtx")
    # Without an output (a plan alone) the working folder stands for where it may go.
    place = output or (source if extends else Path())
    return BuildPlan(
        printable_name(str(source)), sizes, tuple(steps), room_for(place) if room is None else room
    )


def _size(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{-(-size // MB)} MB"


def _minutes(minutes: tuple[float, float]) -> str:
    least, most = minutes
    if most < 2:
        return f"{max(round(60 * least), 1)} to {max(round(60 * most), 1)} seconds"
    return f"{least:.0f} to {most:.0f} minutes" if least >= 1 else f"1 to {most:.0f} minutes"
