"""What must hold of an engine: three images at every opening, every law at every batch size when asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.bundle.golden import Golden
from runtime.selftest.checks import Check, are_rows_in_order, compared, require

# How many golden rows the quick test reads.
QUICK_ROWS = 2


def quick_self_test(backend: Backend, golden: Golden, tolerance: float) -> None:
    """Runs golden images 0 and 1 as one batch, then image 1 alone, and compares.

    Raises:
        SelfTestError: a logit is off, two rows of a batch are swapped, or a row depends on its batch.
        EngineLoadError: the engine failed.
    """
    rows = min(QUICK_ROWS, len(golden.images), backend.profile[2])
    logit, embedding = backend.run(golden.images[:rows])
    in_order = are_rows_in_order(embedding, golden.embedding[:rows])
    require(compared("golden logits", logit, golden.logit[:rows], tolerance, rows_in_order=in_order))
    alone, _ = backend.run(golden.images[rows - 1 : rows])
    name = "batch law (a row alone equals the row in a batch)"
    require(compared(name, alone, logit[rows - 1 :], tolerance))
    require(compared("golden logits of a row alone", alone, golden.logit[rows - 1 : rows], tolerance))


def check_count(backend: Backend, profiles: Iterable[tuple[int, int, int]]) -> int:
    """Returns how many checks ``full_self_test`` yields."""
    return 1 + 5 * len(_sizes_above_one(backend, profiles))


def full_self_test(
    backend: Backend, golden: Golden, tolerance: float, profiles: Iterable[tuple[int, int, int]]
) -> Iterator[Check]:
    """Tries every law at the minimum, optimum and maximum of each profile; yields each check when it is done.

    The laws: golden images give their stored logits; a row in a batch equals the row alone; equal rows give
    equal logits; reversed rows give reversed logits; rows do not see what a batch is filled up with. All
    within the tolerance, never by equality: kernels differ by batch size and position.

    Args:
        backend: the opened engine.
        golden: all golden images.
        tolerance: on |difference of logits|.
        profiles: (min, opt, max) as the manifest states them.

    Raises:
        EngineLoadError: the engine failed.
    """
    runs = [backend.run(golden.images[k : k + 1]) for k in range(len(golden.images))]
    alone = np.concatenate([logit for logit, _ in runs])
    yield compared("golden logits, batch 1", alone, golden.logit, tolerance)
    for size in _sizes_above_one(backend, profiles):
        yield from _laws_at(backend, golden, alone, size, tolerance)


def _sizes_above_one(backend: Backend, profiles: Iterable[tuple[int, int, int]]) -> list[int]:
    # Every image is run alone anyway, and the other laws speak of batches.
    return sorted({size for profile in profiles for size in profile if 1 < size <= backend.profile[2]})


def _laws_at(
    backend: Backend, golden: Golden, alone: NDArray[np.float32], size: int, tolerance: float
) -> Iterator[Check]:
    count = len(golden.images)
    # Whole batches, the last one filled with the first images again.
    rows = np.arange(-(-count // size) * size) % count
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    outputs = [backend.run(golden.images[chunk]) for chunk in chunks]
    logit = np.concatenate([found for found, _ in outputs])
    in_order = all(
        are_rows_in_order(embedding, golden.embedding[chunk])
        for chunk, (_, embedding) in zip(chunks, outputs, strict=True)
    )
    yield compared(
        f"golden logits, batch {size}", logit, golden.logit[rows], tolerance, rows_in_order=in_order
    )
    yield compared(f"batch law, batch {size}", logit, alone[rows], tolerance)
    same = min(1, count - 1)
    identical, _ = backend.run(np.repeat(golden.images[same : same + 1], size, axis=0))
    yield compared(f"identical rows, batch {size}", identical, alone[same : same + 1], tolerance)
    backwards = chunks[0][::-1]
    reverse, embedding = backend.run(golden.images[backwards])
    in_order = are_rows_in_order(embedding, golden.embedding[backwards])
    expected = logit[:size][::-1]
    yield compared(f"permuted rows, batch {size}", reverse, expected, tolerance, rows_in_order=in_order)
    padded = golden.images[chunks[0]]
    padded[1:] = 0
    first, _ = backend.run(padded)
    yield compared(f"padded rows, batch {size}", first[:1], alone[:1], tolerance)
