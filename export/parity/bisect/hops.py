"""The two hops that are looked at part by part: PyTorch to the FP32 graph, and that to FP16, emulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.onnx_files import inferred_types, load_model, require_onnx
from export.parity.bisect.boundaries import HEAD, PROJECTION, Boundary, boundaries_of
from export.parity.bisect.drift import HopDrift, HopSums
from export.parity.bisect.faults import MISSING, NOT_RUN, PartFaultError, part_in
from export.parity.bisect.forcing import ForcedSession, Values, force_parts
from export.parity.bisect.torch_values import HookableCheckpoint, torch_values
from export.parity.forms.form import FP16, ONNX_FP32, UNMERGED
from export.precision.blocks import block_of
from export.precision.emulation import emulated_from_fp16
from export.precision.graph_session import GraphSession
from export.precision.watching import open_emulation
from runtime.console import Progress
from runtime.errors import EngineBuildError, EngineLoadError, SpecError
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
        PartFaultError: the graph leaves out a block.
        EngineLoadError: ONNX Runtime cannot load or run it.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    with ExitStack() as stack:
        graph = _Graph(fp32, stack, is_half=False)
        sums = HopSums(graph.boundaries, "fp32")
        with Progress("drift by block, PyTorch to ONNX", len(images)) as progress:
            for rows in _batches(images, batch):
                values = torch_values(checkpoint, rows)
                reference = _known(values, graph.boundaries, ONNX_FP32, fp32.name)
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
        As ``export_drift`` does; a ``PartFaultError`` of the FP32 graph where that is what does not run.
    """
    with ExitStack() as stack:
        before = _Reference(fp32, stack)
        after = _Graph(fp16, stack, is_half=True)
        sums = HopSums(after.boundaries, "fp16")
        with Progress("drift by block, FP32 to FP16", len(images)) as progress:
            for rows in _batches(images, batch):
                reference = _known(before.values(rows), after.boundaries, FP16, fp16.name)
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


class _Reference:
    """The FP32 graph as what FP16 is compared with: what breaks in it is not the FP16 graph's fault."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        with _blamed_on(ONNX_FP32):
            self._graph = _Graph(path, stack, is_half=False)

    def values(self, images: NDArray[np.uint8]) -> Values:
        """Returns the results of all parts, each reading the one before."""
        with _blamed_on(ONNX_FP32):
            return self._graph.values(images)


@contextmanager
def _blamed_on(form: str) -> Iterator[None]:
    try:
        yield
    except (EngineBuildError, EngineLoadError, SpecError) as err:
        raise PartFaultError(form, part_in(str(err)), NOT_RUN, str(err)) from err


def _half_boundaries(model: ModelProto, boundaries: list[Boundary]) -> set[str]:
    half = require_onnx().TensorProto.FLOAT16
    types = inferred_types(model)
    return {boundary.tensor for boundary in boundaries if types.get(boundary.tensor) == half}


def _known(values: Values, boundaries: list[Boundary], form: str, name: str) -> Values:
    names = [boundary.name for boundary in boundaries]
    # Else the block behind the one that is left out would be blamed: it reads what it should not.
    left_out = [part for part in values if block_of(f"{part}/") is not None and part not in names]
    if left_out:
        raise PartFaultError(
            form,
            left_out[0],
            MISSING,
            f"{name}: found no result of {left_out[0]} that another part reads, expected every block of the "
            "form that it is compared with; export it again",
        )
    missing = [part for part in names if part not in values]
    if missing:
        raise SpecError(
            f"{name}: its part {missing[0]} is not in the form that it is compared with, which has "
            f"{', '.join(values)}; compare forms of one model"
        )
    return values


def _batches(images: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [images[start : start + size] for start in range(0, len(images), size)]
