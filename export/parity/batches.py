"""Batch laws of a form: a picture's logit does not depend on what else is in its batch, or on how many.

Within the tolerance of its precision, never by equality: kernels differ by shape and by position in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from export.parity.compare import HopReport, Limits, Outputs, compare_logits
from export.parity.forms import Runnable, run_in_chunks
from runtime.decision import Decision

# Always looked at besides the profile's own: a graph with the batch frozen inside is right at one size only.
SMALL_SIZES = (1, 2, 3)
# Different mosaics in a batch; larger batches repeat them.
DISTINCT = 8


def checked_sizes(profile: tuple[int, int, int]) -> tuple[int, ...]:
    """Returns the batch sizes that stand for a whole profile, ascending.

    The minimum, 1 to 3, the optimum, its neighbour, a size between optimum and maximum, and the maximum. A
    size below the minimum is one that the runtime fills up.
    """
    low, best, most = profile
    sizes = {*SMALL_SIZES, low, best, best + 1, (best + most) // 2, most}
    return tuple(sorted(size for size in sizes if 1 <= size <= most))


def batch_laws(
    form: Runnable,
    mosaics: NDArray[np.uint8],
    profile: tuple[int, int, int],
    *,
    decision: Decision,
    limits: Limits,
) -> Iterator[HopReport]:
    """Yields one comparison with batch 1 for each law, as it is checked.

    Args:
        form: what computes.
        mosaics: uint8 ``[N, 224, 224, 3]``, some that differ.
        profile: (min, opt, max) batch size.
        decision: the rule by which a verdict counts as changed.
        limits: what is allowed.

    Raises:
        DgsNetError: the form failed at some batch size.
    """
    mosaics = mosaics[:DISTINCT]
    alone = run_in_chunks(form, mosaics, 1)

    def law(name: str, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> HopReport:
        logits, embeddings = form.run(images)
        count = len(rows)
        return compare_logits(
            name,
            [f"mosaic {row}" for row in rows],
            alone[0][rows],
            logits[:count],
            decision=decision,
            limits=limits,
            embeddings=(alone[1][rows], embeddings[:count]),
        )

    for size in checked_sizes(profile):
        rows = np.arange(size) % len(mosaics)
        yield law(f"batch {size}", mosaics[rows], rows)
    size = min(max(profile[1], 2), profile[2])
    same = np.full(size, len(mosaics) - 1)
    yield law("identical rows", mosaics[same], same)
    turned = np.random.RandomState(0).permutation(np.arange(size) % len(mosaics))
    yield law("permuted rows", mosaics[turned], turned)
    kept = np.arange(max(size - 2, 1)) % len(mosaics)
    padding = np.zeros((size - len(kept), *mosaics.shape[1:]), np.uint8)
    yield law("padded rows", np.concatenate([mosaics[kept], padding]), kept)


def run_in_batches(form: Runnable, images: NDArray[np.uint8], size: int) -> Outputs:
    """Returns logits ``[N]`` and embeddings ``[N, D]`` of the mosaics, run ``size`` at a time."""
    return run_in_chunks(form, images, size)
