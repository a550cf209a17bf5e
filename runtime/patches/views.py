"""K views of one picture: its mosaic under K fixed permutations, whose logits are averaged.

View 0 is the mosaic of the bundle's own permutation, so that one view is the plain verdict. View k from 1 on
is the same for every bundle, machine and version: it orders the 49 patches by SHA-256 of "dgsnet view k patch
i".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UsageError
from runtime.spec import PATCH_COUNT, PERMUTATION

MAX_VIEWS = 64


def view_permutations(views: int, first: Sequence[int] = PERMUTATION) -> tuple[tuple[int, ...], ...]:
    """Returns the permutations of views 0 to ``views - 1``; fewer views are always a prefix of more.

    Args:
        views: 1 to 64.
        first: that of view 0.

    Raises:
        UsageError: ``views`` is out of range.
    """
    if isinstance(views, bool) or not isinstance(views, int) or not 1 <= views <= MAX_VIEWS:
        raise UsageError(f"views: found {views!r}, expected 1 to {MAX_VIEWS}")
    return (tuple(int(k) for k in first), *(_permutation(view) for view in range(1, views)))


def averaged_logits(logits: NDArray[np.float32], views: int) -> NDArray[np.float64]:
    """Returns the mean logit of each picture; of one view, the logit itself.

    Args:
        logits: float32 ``[N * views]``, the views of one picture next to each other.
        views: how many there are of each picture.

    Returns:
        float64 ``[N]``, averaged in float64.
    """
    mean: NDArray[np.float64] = logits.reshape(-1, views).mean(axis=1, dtype=np.float64)
    return mean


@lru_cache(maxsize=MAX_VIEWS)
def _permutation(view: int) -> tuple[int, ...]:
    def key(patch: int) -> bytes:
        return hashlib.sha256(f"dgsnet view {view} patch {patch}".encode("ascii")).digest()

    return tuple(sorted(range(PATCH_COUNT), key=key))
