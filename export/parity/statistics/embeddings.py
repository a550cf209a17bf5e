"""How alike two forms' embeddings are, row by row: by direction and by length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cosine_rows(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the cosine of each pair of rows, float64 ``[n]``; -1 where a number is not finite."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    good = np.isfinite(a64).all(axis=1) & np.isfinite(b64).all(axis=1)
    cosines = np.full(len(a64), -1.0)
    norms = np.linalg.norm(a64[good], axis=1) * np.linalg.norm(b64[good], axis=1)
    cosines[good] = np.sum(a64[good] * b64[good], axis=1) / np.maximum(norms, 1e-300)
    return cosines


def length_rows(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the length of each row of ``b`` over that of ``a``, float64 ``[n]``; 1 where not finite.

    A row that is not finite has a cosine of -1, which says enough.
    """
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    good = np.isfinite(a64).all(axis=1) & np.isfinite(b64).all(axis=1)
    ratios = np.ones(len(a64))
    before, after = np.linalg.norm(a64[good], axis=1), np.linalg.norm(b64[good], axis=1)
    # Two embeddings of zeros agree; one of them is as wrong as can be, and still a number.
    ratios[good] = np.maximum(after, 1e-30) / np.maximum(before, 1e-30)
    return ratios
