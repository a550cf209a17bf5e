"""A graph session that watches tensors while it runs: largest magnitude of each, infinities and NaN counted.

The figures are computed inside the graph, so memory grows neither with the tensors nor with the mosaics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.onnx_files import load_model, require_onnx
from export.precision.blocks import part_of
from export.precision.emulation import ComputedTensor, computed_tensors, emulated_from_fp16
from export.precision.graph_session import GraphSession
from runtime.bundle.engine_entry import MAX_BATCH

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Reductions to one number that cost next to nothing. ReduceMax and ReduceMin of ONNX Runtime overlook NaN,
# the sum of magnitudes does not.
_FIGURES = {"max": "ReduceMax", "min": "ReduceMin", "l1": "ReduceL1"}
# Counting copies the tensor, which took 0.7 times the run itself: only batches that need it are counted.
_COUNTS = {"inf": "IsInf", "nan": "IsNaN"}


@dataclass(frozen=True)
class Seen:
    """What a tensor held in all runs.

    Attributes:
        largest: largest magnitude; infinity when one of the values was infinite. NaN are left out.
        infinite: how many values were infinite.
        nan: how many were NaN.
    """

    largest: float = 0.0
    infinite: int = 0
    nan: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether every value was a finite number."""
        return not self.infinite and not self.nan


class WatchedSession(GraphSession):
    """A session that remembers what its tensors held, over every run.

    Args:
        model: the graph, left as it is; weights may lie in a data file.
        folder: where that data file is.
        tensors: the float32 tensors to watch, in the order of computation.
        name: what ran, as reports show it.
        taps: as ``GraphSession`` takes them.
        max_batch: largest batch that a run takes.
        threads: CPU threads inside one operator; None leaves it to ONNX Runtime (one per core).

    Attributes:
        tensors: as given.
        seen: what each of them held, by name.

    Raises:
        As ``GraphSession`` does.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path,
        tensors: Sequence[ComputedTensor],
        *,
        name: str,
        taps: Sequence[str] = (),
        max_batch: int = MAX_BATCH,
        threads: int | None = None,
    ) -> None:
        self.tensors = tuple(tensors)
        self.seen = {tensor.name: Seen() for tensor in self.tensors}
        self._model, self._folder, self._threads = model, folder, threads
        self._counting: GraphSession | None = None
        extended, self._figures = _with_figures(model, list(self.seen))
        super().__init__(
            extended, folder, name=name, taps=[*taps, *self._figures], max_batch=max_batch, threads=threads
        )
        self._taps = list(taps)

    def __enter__(self) -> WatchedSession:
        return self

    def close(self) -> None:
        """Frees the sessions; what was seen stays."""
        super().close()
        if self._counting is not None:
            self._counting.close()

    @property
    def first_overflow(self) -> ComputedTensor | None:
        """The first tensor, in the order of computation, that held infinity or NaN; None when none did."""
        return next((tensor for tensor in self.tensors if not self.seen[tensor.name].is_finite), None)

    def overflows(self) -> tuple[tuple[str, int, int], ...]:
        """Returns (part of the graph, infinite values, NaN values) of each that had any, in graph order."""
        totals: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors:
            seen, part = self.seen[tensor.name], part_of(tensor.source[0])
            if not seen.is_finite:
                infinite, nan = totals.get(part, (0, 0))
                totals[part] = (infinite + seen.infinite, nan + seen.nan)
        return tuple((part, *counts) for part, counts in totals.items())

    def _run(self, names: list[str], images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        values = super()._run([*names, *self._figures], images)
        figures = iter([float(value) for value in values[len(names) :]])
        suspicious = False
        for tensor, (high, low, total) in zip(
            self.seen, zip(figures, figures, figures, strict=True), strict=True
        ):
            if math.isfinite(total):
                old = self.seen[tensor]
                self.seen[tensor] = Seen(max(old.largest, high, -low), old.infinite, old.nan)
            else:
                suspicious = True
        if suspicious:
            self._count(images)
        return values[: len(names)]

    def _count(self, images: NDArray[np.uint8]) -> None:
        """Runs a batch again to count what was infinite or NaN in it."""
        if self._counting is None:
            extended, taps = _with_counts(self._model, list(self.seen))
            self._counting = GraphSession(
                extended,
                self._folder,
                name=f"{self.name}, counting",
                taps=taps,
                max_batch=self.profile[2],
                threads=self._threads,
            )
        found = self._counting.run_taps(images)[2]
        for tensor, old in self.seen.items():
            infinite, nan = (int(found[_tap(tensor, figure)]) for figure in _COUNTS)
            largest = math.inf if infinite else old.largest
            self.seen[tensor] = Seen(largest, old.infinite + infinite, old.nan + nan)


def open_emulation(
    path: Path, *, taps: Sequence[str] = (), max_batch: int = MAX_BATCH, threads: int | None = None
) -> WatchedSession:
    """Opens the emulation of an FP16 graph and watches every value that it computes in FP16.

    Nothing is written, and the weights are read where they lie. Watching costs a few percent.

    Args:
        path: the FP16 graph, such as a bundle's model_fp16.onnx.
        taps: names of tensors of that graph that ``run_taps`` gives too, as float32 holding FP16 values.
        max_batch: largest batch that a run takes.
        threads: CPU threads inside one operator; None leaves it to ONNX Runtime.

    Raises:
        SpecError: the file cannot be read, breaks the contract or has nothing FP16 inside.
        EngineBuildError: the graph has parts that the emulation does not know.
        EngineLoadError: ONNX Runtime cannot load it, or left out casts.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    model = load_model(path, weights=False)
    half = [tensor for tensor in computed_tensors(model) if tensor.is_half]
    emulated_from_fp16(model)
    return WatchedSession(
        model, path.parent, half, name="fp16-emulation:cpu", taps=taps, max_batch=max_batch, threads=threads
    )


def open_watched_fp32(
    path: Path, *, max_batch: int = MAX_BATCH, threads: int | None = None
) -> WatchedSession:
    """Opens an FP32 graph and watches every value that it computes.

    Args:
        path: the FP32 graph, such as a bundle's model.onnx.
        max_batch: largest batch that a run takes.
        threads: CPU threads inside one operator; None leaves it to ONNX Runtime.

    Raises:
        SpecError: the file cannot be read or breaks the contract.
        EngineBuildError: the graph has functions or control flow.
        EngineLoadError: ONNX Runtime cannot load it.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    model = load_model(path, weights=False)
    return WatchedSession(
        model, path.parent, computed_tensors(model), name="fp32:cpu", max_batch=max_batch, threads=threads
    )


def _with_figures(model: ModelProto, tensors: Sequence[str]) -> tuple[ModelProto, list[str]]:
    make_node = require_onnx().helper.make_node
    taps = {tensor: [_tap(tensor, figure) for figure in _FIGURES] for tensor in tensors}
    return _extended(
        model,
        {
            tensor: [
                make_node(op, [tensor], [tap], name=tap, keepdims=0)
                for op, tap in zip(_FIGURES.values(), taps[tensor], strict=True)
            ]
            for tensor in tensors
        },
    ), [tap for names in taps.values() for tap in names]


def _with_counts(model: ModelProto, tensors: Sequence[str]) -> tuple[ModelProto, list[str]]:
    onnx = require_onnx()
    make_node, integer = onnx.helper.make_node, onnx.TensorProto.INT64
    added: dict[str, list[NodeProto]] = {}
    taps: list[str] = []
    for tensor in tensors:
        added[tensor] = []
        for figure, op in _COUNTS.items():
            tap = _tap(tensor, figure)
            added[tensor] += [
                make_node(op, [tensor], [f"{tap}/is"], name=f"{tap}/is"),
                make_node("Cast", [f"{tap}/is"], [f"{tap}/one"], name=f"{tap}/one", to=integer),
                make_node("ReduceSum", [f"{tap}/one"], [tap], name=tap, keepdims=0),
            ]
            taps.append(tap)
    return _extended(model, added), taps


def _extended(model: ModelProto, added: dict[str, list[NodeProto]]) -> ModelProto:
    """Returns a copy with nodes added behind what they read; at the end they would keep all tensors alive."""
    extended = type(model)()
    extended.CopyFrom(model)
    del extended.graph.node[:]
    for node in model.graph.node:
        extended.graph.node.append(node)
        for name in node.output:
            extended.graph.node.extend(added.get(name, ()))
    return extended


def _tap(tensor: str, figure: str) -> str:
    return f"watch/{figure}/{tensor}"
