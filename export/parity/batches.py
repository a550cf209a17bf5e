"""Batch laws of an engine: every batch size agrees with the reference, on the same pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.parity.compare import HopReport, Limits, Outputs, compare_logits
from runtime.backends.base import Backend
from runtime.decision import Decision


def run_in_batches(backend: Backend, images: NDArray[np.uint8], size: int) -> Outputs:
    """Returns logits ``[N]`` and embeddings ``[N, D]`` of the mosaics, run ``size`` at a time."""
    parts = [backend.run(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def check_batch_sizes(
    backend: Backend,
    images: NDArray[np.uint8],
    reference: Outputs,
    sizes: tuple[int, ...],
    *,
    all_at: int,
    decision: Decision,
    limits: Limits,
) -> list[HopReport]:
    """Compares the engine at several batch sizes with the reference on the same mosaics.

    Args:
        backend: the opened engine.
        images: uint8 ``[N, 224, 224, 3]``.
        reference: logits and embeddings of the reference.
        sizes: batch sizes; each must be inside the engine's profile.
        all_at: the size at which every mosaic runs; the others run one batch, which is enough for a law
            about sizes and a quarter of the time on a large tower.
        decision: the rule by which a verdict counts as changed.
        limits: what is allowed.
    """
    reports = []
    for size in sizes:
        # Cyclic repetition fills a batch that is larger than the golden set.
        rows = np.arange(len(images) if size == all_at else size) % len(images)
        logits, embeddings = run_in_batches(backend, images[rows], size)
        reports.append(
            compare_logits(
                f"reference -> {backend.name}, batch {size}",
                [f"golden {row}" for row in rows],
                reference[0][rows],
                logits,
                decision=decision,
                limits=limits,
                embeddings=(reference[1][rows], embeddings),
            )
        )
    return reports
