"""The FP16 hop without a GPU: the FP16 graph with every operator rounded to FP16, against the reference.

What the emulation models, and what it does not, is said in ``export.precision.emulation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.batches import run_in_batches
from export.parity.compare import HopReport, Limits, Outputs, compare_logits
from export.precision.watching import open_emulation
from runtime.decision import Decision


@dataclass(frozen=True)
class EmulatedHopReport(HopReport):
    """A hop that also fails when a value of the FP16 graph was infinite or NaN.

    Attributes:
        overflows: infinite and NaN values of each part of the graph that had any, in its order.
        first_overflow: name of the first node that gave one; "" when none did.
    """

    overflows: tuple[tuple[str, int, int], ...]
    first_overflow: str

    @property
    def passed(self) -> bool:
        """Whether the hop is within its limits and every FP16 value was a finite number."""
        return super().passed and not self.overflows

    def line(self) -> str:
        """Returns the hop as one line for a person."""
        if not self.overflows:
            return super().line()
        part, infinite, nan = self.overflows[0]
        return (
            f"{super().line()}, FP16 overflow first in {part}, node {self.first_overflow} ({infinite} "
            f"infinite and {nan} NaN values in {part})"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        return super().to_json() | {
            "overflows": [
                {"part": part, "infinite": infinite, "nan": nan} for part, infinite, nan in self.overflows
            ],
            "first_overflow": self.first_overflow or None,
        }


def emulated_fp16_parity(
    path: Path,
    images: NDArray[np.uint8],
    reference: Outputs,
    *,
    decision: Decision,
    limits: Limits,
    items: Sequence[str] | None = None,
    batch: int = 4,
    threads: int | None = None,
) -> EmulatedHopReport:
    """Compares the FP16 graph, computed in emulated FP16, with the reference.

    Args:
        path: the FP16 graph.
        images: mosaics, uint8 ``[N, 224, 224, 3]``.
        reference: logits and embeddings of the reference on the same mosaics.
        decision: the rule by which a verdict counts as changed.
        limits: what is allowed.
        items: a name per mosaic; None calls them golden.
        batch: mosaics a run, which bounds the memory.
        threads: CPU threads inside one operator; None leaves it to ONNX Runtime.

    Raises:
        SpecError: the file cannot be read, breaks the contract or has nothing FP16 inside.
        EngineBuildError: the graph has parts that the emulation does not know.
        EngineLoadError: ONNX Runtime cannot load or run it, or leaves out casts.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    with open_emulation(path, max_batch=batch, threads=threads) as session:
        logits, embeddings = run_in_batches(session, images, batch)
        overflows, first = session.overflows(), session.first_overflow
    hop = compare_logits(
        "reference -> FP16 emulated (every operator rounded to FP16)",
        [f"golden {k}" for k in range(len(images))] if items is None else items,
        reference[0],
        logits,
        decision=decision,
        limits=limits,
        embeddings=(reference[1], embeddings),
    )
    return EmulatedHopReport(
        **vars(hop),
        overflows=overflows,
        first_overflow="" if first is None else first.node,
    )
