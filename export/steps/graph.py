"""From a source to model.onnx and its reference logits; a checkpoint goes through a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.statistics.compare import Outputs
from export.source import ONNX, source_kind
from export.steps.child import run_in_child
from export.steps.clock import Phase, PhaseClock
from runtime.decision import Decision

# From this many weights on, numbers are compared on four mosaics at three batch sizes: a large tower takes
# seconds for each of them on a CPU.
LARGE_PARAMETERS = 100_000_000
LARGE_COUNT, LARGE_PROFILE = 4, (1, 2, 3)


@dataclass(frozen=True)
class SourceFacts:
    """What a bundle says of its source.

    Attributes:
        backbone: for the manifest; has a "name".
        decision: threshold and temperature.
        calibrated: whether they were fitted.
        sha256: of the source's weight file.
        reference_name: "pytorch-fp32" or "onnx-fp32".
        parameters: how many numbers the weights are.
    """

    backbone: dict[str, Any]
    decision: Decision
    calibrated: bool
    sha256: str
    reference_name: str
    parameters: int

    def compared(self, count: int) -> int:
        """Returns how many of so many golden mosaics are compared while building."""
        return min(count, LARGE_COUNT) if self.parameters > LARGE_PARAMETERS else count


@dataclass(frozen=True)
class References:
    """What a source gives on the golden mosaics.

    Attributes:
        unmerged: logits ``[N]`` and embeddings ``[N, D]`` that the bundle stores.
        merged: the same with the adapters merged, of the mosaics that are compared; None for an ONNX file.
    """

    unmerged: Outputs
    merged: Outputs | None


def write_graph(
    source: Path, model_path: Path, golden: NDArray[np.uint8], clock: PhaseClock
) -> tuple[SourceFacts, References]:
    """Writes the FP32 graph of a source and returns what is known of it, and what it gives on the mosaics.

    Args:
        source: a run's folder, the authors' .pth, or an ONNX file that follows the contract.
        model_path: where the graph goes; its folder also takes what is needed in between.
        golden: mosaics, uint8 ``[N, 224, 224, 3]``.
        clock: gets the phases.

    Raises:
        CheckpointError, SpecError, UsageError, MissingDependencyError: as the source's own class.
        EngineBuildError: the process that reads the checkpoint died.
    """
    if source_kind(source) == ONNX:
        facts, references, phases = graph_from_onnx(source, model_path, golden)
    else:
        # With torch and the weights gone afterwards, the next steps have that memory.
        facts, references, phases = run_in_child(
            "checkpoint to ONNX", graph_from_checkpoint, source, model_path, golden
        )
    clock.phases += phases
    return facts, references


def graph_from_checkpoint(
    source: Path, model_path: Path, golden: NDArray[np.uint8]
) -> tuple[SourceFacts, References, list[Phase]]:
    """Does ``write_graph`` for a checkpoint, in this process, which loads torch."""
    clock = PhaseClock()
    with clock.phase("read the checkpoint"):
        from export.checkpoint import CheckpointSource

        loaded = CheckpointSource(source, scratch=model_path.parent)
    with clock.phase("write the FP32 graph"):
        parameters = loaded.write_onnx(model_path)
    facts = _facts(loaded, parameters)
    with clock.phase("reference in PyTorch", is_numeric=True):
        unmerged = loaded.reference(golden)
        merged = loaded.merged_reference(golden[: facts.compared(len(golden))])
    return facts, References(unmerged, merged), clock.phases


def graph_from_onnx(
    source: Path, model_path: Path, golden: NDArray[np.uint8]
) -> tuple[SourceFacts, References, list[Phase]]:
    """Does ``write_graph`` for an ONNX file; no torch."""
    from export.onnx_source import OnnxSource

    clock = PhaseClock()
    with clock.phase("read the ONNX file"):
        loaded = OnnxSource(source)
    with clock.phase("write the FP32 graph"):
        parameters = loaded.write_onnx(model_path)
    with clock.phase("reference in ONNX Runtime", is_numeric=True):
        unmerged = loaded.reference(golden)
    return _facts(loaded, parameters), References(unmerged, None), clock.phases


def _facts(loaded: Any, parameters: int) -> SourceFacts:
    return SourceFacts(
        backbone=loaded.backbone,
        decision=loaded.decision,
        calibrated=loaded.calibrated,
        sha256=loaded.sha256,
        reference_name=loaded.reference_name,
        parameters=parameters,
    )
