"""Batch laws of a form: a picture's logit does not depend on what else is in its batch, or on how many.

Within the tolerance of its precision, never by equality: kernels differ by shape and by position in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.parity.forms.form import Runnable
from export.parity.statistics.compare import HopReport, Limits, Outputs, compare_logits
from runtime.decision import Decision

# Always looked at besides the profile's own: a graph with the batch frozen inside is right at one size only.
SMALL_SIZES = (1, 2, 3)
# How far every size is looked at where that is asked for: 528 rows, about what 30 batches of 16 take.
EVERY_UP_TO = 32
# Different mosaics in a batch; larger batches repeat them.
DISTINCT = 8


def checked_sizes(profile: tuple[int, int, int], *, every: bool = False) -> tuple[int, ...]:
    """Returns the batch sizes that are looked at, ascending.

    The minimum, 1 to 3, the optimum, its neighbour, a size between optimum and maximum, and the maximum. A
    size below the minimum is one that the runtime fills up.

    Args:
        profile: (min, opt, max) batch size.
        every: take all sizes up to ``EVERY_UP_TO`` besides.
    """
    low, best, most = profile
    sizes = {*SMALL_SIZES, low, best, best + 1, (best + most) // 2, most}
    if every:
        sizes.update(range(1, EVERY_UP_TO + 1))
    return tuple(sorted(size for size in sizes if 1 <= size <= most))


@dataclass(frozen=True)
class Law:
    """A batch, and what each picture in it gives alone.

    Attributes:
        name: of the law.
        images: the batch, uint8 ``[n, 224, 224, 3]``.
        rows: which of the different mosaics the first rows are, int64; rows after them are padding.
    """

    name: str
    images: NDArray[np.uint8]
    rows: NDArray[np.int64]

    def compared(self, form: Runnable, alone: Outputs, *, decision: Decision, limits: Limits) -> HopReport:
        """Returns the batch against batch 1.

        Args:
            form: what computes.
            alone: logits and embeddings of the different mosaics, each from a batch of one.
            decision: the rule by which a verdict counts as changed.
            limits: what is allowed.

        Raises:
            DgsNetError: the form failed at this size.
        """
        logits, embeddings = form.run(self.images)
        count = len(self.rows)
        return compare_logits(
            self.name,
            [f"mosaic {row}" for row in self.rows],
            alone[0][self.rows],
            logits[:count],
            decision=decision,
            limits=limits,
            embeddings=(alone[1][self.rows], embeddings[:count]),
        )


def batch_laws(
    mosaics: NDArray[np.uint8], profile: tuple[int, int, int], *, every: bool = False
) -> Iterator[Law]:
    """Yields the laws of a profile; one batch is in memory at a time.

    Args:
        mosaics: uint8 ``[N, 224, 224, 3]``, some that differ.
        profile: (min, opt, max) batch size.
        every: whether all sizes are looked at; see ``checked_sizes``.
    """
    for size in checked_sizes(profile, every=every):
        rows = np.arange(size) % len(mosaics)
        yield Law(f"batch {size}", mosaics[rows], rows)
    size = min(max(profile[1], 2), profile[2])
    same = np.full(size, len(mosaics) - 1)
    yield Law("identical rows", mosaics[same], same)
    turned = np.random.RandomState(0).permutation(np.arange(size) % len(mosaics))
    yield Law("permuted rows", mosaics[turned], turned)
    kept = np.arange(max(size - 2, 1)) % len(mosaics)
    padding = np.zeros((size - len(kept), *mosaics.shape[1:]), np.uint8)
    yield Law("padded rows", np.concatenate([mosaics[kept], padding]), kept)
