"""A loader check of the FP16 graph: does plain ONNX Runtime open it, with the weights and wiring of FP32?

On a CPU ONNX Runtime computes an FP16 graph in FP32, so this says nothing about FP16 arithmetic and lets an
overflow pass. FP16 is judged by the emulation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.cpu_session import open_cpu_session
from export.parity.statistics.compare import HopReport, Limits, Outputs, compare_logits
from runtime.decision import Decision
from runtime.errors import EngineBuildError, EngineLoadError, one_line
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME

# Enough to see a wrong weight; a large tower takes seconds for each on a CPU.
MOSAICS = 4


def fp16_loader_check(
    path: Path, images: NDArray[np.uint8], reference: Outputs, *, decision: Decision, limits: Limits
) -> HopReport:
    """Compares the FP16 graph, computed in FP32, with the reference on the first few mosaics.

    Raises:
        EngineBuildError: ONNX Runtime cannot open or run the graph.
        MissingDependencyError: onnxruntime is not installed.
    """
    images, logit, embedding = images[:MOSAICS], reference[0][:MOSAICS], reference[1][:MOSAICS]
    try:
        session = open_cpu_session(str(path), path.name)
    except EngineLoadError as err:
        raise EngineBuildError(str(err)) from err
    try:
        found = session.run([LOGIT_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
    except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
        raise EngineBuildError(f"{path.name}: onnxruntime cannot run it ({one_line(err)})") from err
    return compare_logits(
        "reference -> FP16 graph, loader check (a CPU computes it in FP32)",
        [f"golden {k}" for k in range(len(images))],
        logit,
        found[0],
        decision=decision,
        limits=limits,
        embeddings=(embedding, found[1]),
    )
