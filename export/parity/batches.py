"""Batch laws of an engine: every batch size agrees with batch 1, on the same pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.parity.compare import HopReport, compare_logits
from runtime.backends.base import Backend


def run_in_batches(
    backend: Backend, images: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns logits ``[N]`` and embeddings ``[N, D]`` of the mosaics, run ``size`` at a time."""
    parts = [backend.run(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def check_batch_sizes(
    backend: Backend,
    images: NDArray[np.uint8],
    reference: tuple[NDArray[np.float32], NDArray[np.float32]],
    sizes: tuple[int, ...],
    *,
    all_at: int,
    boundary: float,
    tolerance: float,
) -> list[HopReport]:
    """Compares the engine at several batch sizes with the reference on the same mosaics.

    Args:
        backend: the opened engine.
        images: uint8 ``[N, 224, 224, 3]``.
        reference: logits and embeddings of the reference.
        sizes: batch sizes; each must be inside the engine's profile.
        all_at: the size at which every mosaic runs; the others run one batch, which is enough for a law
            about sizes and a quarter of the time on a large tower.
        boundary: raw logit at which the verdict changes.
        tolerance: largest |difference of logits| that is allowed.
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
                boundary=boundary,
                tolerance=tolerance,
                embeddings=(reference[1][rows], embeddings),
            )
        )
    return reports
