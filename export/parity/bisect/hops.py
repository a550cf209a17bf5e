"""The two hops that are looked at part by part: PyTorch to the FP32 graph, and that to FP16, emulated."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.onnx_files import inferred_types, load_model, require_onnx
from export.parity.bisect.boundaries import HEAD, PROJECTION, Boundary, boundaries_of
from export.parity.bisect.drift import HopDrift, HopSums
from export.parity.bisect.forcing import ForcedSession, Values, force_parts
from export.parity.bisect.torch_values import HookableCheckpoint, torch_values
from export.parity.forms import FP16, ONNX_FP32, UNMERGED
from export.precision.emulation import emulated_from_fp16
from export.precision.graph_session import GraphSession
from export.precision.watching import open_emulation
from runtime.console import Progress
from runtime.errors import SpecError
from runtime.spec import EMBEDDING_NAME, LOGIT_NAME

if TYPE_CHECKING:
    from onnx import ModelProto

# No size that a batch would be frozen at by chance: such a graph fails here, and its node is named.
DEFAULT_BATCH = 3


def export_drift(
    checkpoint: HookableCheckpoint, fp32: Path, images: NDArray[np.uint8], *, batch: int = DEFAULT_BATCH
) -> HopDrift:
    """Compares the FP32 graph with PyTorch, adapters unmerged, part by part.

    Args:
        checkpoint: what the graph was made from.
        fp32: the graph, such as a bundle's model.onnx.
        images: mosaics, uint8 ``[N, 224, 224, 3]``.
        batch: mosaics at a time, which bounds the memory.

    Raises:
        SpecError: the graph breaks the contract, has no named blocks, or is of another model.
        EngineLoadError: ONNX Runtime cannot load or run it.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    with ExitStack() as stack:
        graph = _Graph(fp32, stack, is_half=False)
        sums = HopSums(graph.boundaries, "fp32")
        with Progress("drift by block, PyTorch to ONNX", len(images)) as progress:
            for rows in _batches(images, batch):
                reference = _known(torch_values(checkpoint, rows), graph.boundaries, fp32.name)
                graph.add_to(sums, rows, reference)
                progress.advance(len(rows))
    return sums.result(ONNX_FP32, UNMERGED)


def fp16_drift(fp32: Path, fp16: Path, images: NDArray[np.uint8], *, batch: int = DEFAULT_BATCH) -> HopDrift:
    """Compares the emulated FP16 graph with the FP32 graph, part by part.

    Args:
        fp32: the FP32 graph.
        fp16: the FP16 graph.
        images: mosaics, uint8 ``[N, 224, 224, 3]``.
        batch: mosaics at a time, which bounds the memory.

    Raises:
        As ``export_drift`` does.
    """
    with ExitStack() as stack:
        before, after = _Graph(fp32, stack, is_half=False), _Graph(fp16, stack, is_half=True)
        sums = HopSums(after.boundaries, "fp16")
        with Progress("drift by block, FP32 to FP16", len(images)) as progress:
            for rows in _batches(images, batch):
                reference = _known(before.values(rows), after.boundaries, fp16.name)
                after.add_to(sums, rows, reference)
                progress.advance(len(rows))
    return sums.result(FP16, ONNX_FP32)


class _Graph:
    """A graph run twice on each batch: from the picture on, and part by part."""

    def __init__(self, path: Path, stack: ExitStack, *, is_half: bool) -> None:
        model = load_model(path, weights=False)
        self.boundaries = boundaries_of(model)
        self._is_shaken = False
        taps = [b.tensor for b in self.boundaries if b.tensor not in (EMBEDDING_NAME, LOGIT_NAME)]
        halves: set[str] = set()
        self._whole: GraphSession
        if is_half:
            halves = _half_boundaries(model, self.boundaries)
            emulated_from_fp16(model)
            self._whole = stack.enter_context(open_emulation(path, taps=taps))
        else:
            self._whole = stack.enter_context(
                GraphSession(load_model(path, weights=False), path.parent, name=path.name, taps=taps)
            )
        force_parts(model, self.boundaries, halves)
        self._parts = stack.enter_context(
            ForcedSession(model, path.parent, self.boundaries, name=f"{path.name}, part by part")
        )

    def values(self, images: NDArray[np.uint8]) -> Values:
        """Returns the results of all parts, each reading the one before."""
        logit, embedding, taps = self._whole.run_taps(images)
        known = taps | {LOGIT_NAME: logit, EMBEDDING_NAME: embedding}
        values = {b.name: np.asarray(known[b.tensor], np.float32) for b in self.boundaries}
        return values | {HEAD: logit, PROJECTION: embedding}

    def add_to(self, sums: HopSums, images: NDArray[np.uint8], reference: Values) -> None:
        """Adds one batch to what is collected against a reference."""
        own = self._parts.run(images, reference)
        sums.add(reference, self.values(images), own)
        if not self._is_shaken:
            self._is_shaken = True  # how a part answers to noise is its own property: one batch shows it
            sums.add_response(reference, own, self._parts.run(images, sums.shaken(reference)))


def _half_boundaries(model: ModelProto, boundaries: list[Boundary]) -> set[str]:
    half = require_onnx().TensorProto.FLOAT16
    types = inferred_types(model)
    return {boundary.tensor for boundary in boundaries if types.get(boundary.tensor) == half}


def _known(values: Values, boundaries: list[Boundary], name: str) -> Values:
    missing = [boundary.name for boundary in boundaries if boundary.name not in values]
    if missing:
        raise SpecError(
            f"{name}: its part {missing[0]} is not in the form that it is compared with, which has "
            f"{', '.join(values)}; compare forms of one model"
        )
    return values


def _batches(images: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [images[start : start + size] for start in range(0, len(images), size)]
