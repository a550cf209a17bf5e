"""How far one form's results are from another's, token by token; only sums are kept, never the tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.bisect.boundaries import HEAD, PATCHES
from export.parity.statistics.embeddings import cosine_rows
from runtime.errors import SpecError

# Bins of the histogram that quantiles are read from: 50 to a decade, so that one is right within 5 %.
_BINS_A_DECADE, _LOWEST, _HIGHEST = 50, -12, 3


@dataclass(frozen=True)
class Drift:
    """What the comparison of one part came to.

    Attributes:
        tokens: rows compared.
        nonfinite: rows with infinity or NaN on either side.
        error_max: largest relative error of a row; None when one was not finite.
        error_p99: its 99th percentile; None when that row was not finite.
        cosine_min: smallest cosine of a row; -1 when one was not finite.
        cosine_mean: their mean.
    """

    tokens: int
    nonfinite: int
    error_max: float | None
    error_p99: float | None
    cosine_min: float
    cosine_mean: float

    def is_over(self, limit: float) -> bool:
        """Whether a row is farther off than ``limit``, or not finite."""
        return self.error_max is None or self.error_max > limit

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return dict(vars(self))


class DriftSums:
    """Collects the drift of one part, batch by batch.

    The relative error of a row is the norm of the difference over the norm of the reference, or of what the
    part was given where that is larger: rounding is in proportion to both, and a block that takes away most
    of what it was given is not wrong for that.
    """

    def __init__(self) -> None:
        self._histogram = np.zeros((_HIGHEST - _LOWEST) * _BINS_A_DECADE, np.int64)
        self._tokens = self._nonfinite = 0
        self._largest, self._cosine_sum, self._cosine_min = 0.0, 0.0, 1.0

    def add(
        self,
        name: str,
        reference: NDArray[np.float32],
        found: NDArray[np.float32],
        given: NDArray[np.float32] | None = None,
    ) -> None:
        """Takes one batch of a part's results.

        Args:
            name: of the part, which says what a row is.
            reference: results that are right by definition.
            found: of the other form, of the same shape.
            given: what the part was given; it counts where it has the shape of the result.

        Raises:
            SpecError: the shapes differ.
        """
        if reference.shape != found.shape:
            raise SpecError(
                f"{name}: found results of shape {list(found.shape)}, expected {list(reference.shape)}; are "
                "both of one model?"
            )
        before, after = rows_of(name, reference), rows_of(name, found)
        with np.errstate(invalid="ignore", over="ignore"):
            norm = np.linalg.norm(before, axis=1)
            if given is not None and given.shape == reference.shape:
                norm = np.maximum(norm, np.linalg.norm(rows_of(name, given), axis=1))
            if name == HEAD:
                norm = np.maximum(norm, 1.0)  # a logit near 0 is not a small one: its unit is 1
            difference = np.linalg.norm(after - before, axis=1)
            error = np.where(difference == 0, 0.0, difference / np.maximum(norm, 1e-30))
        finite = np.isfinite(error)
        cosine = cosine_rows(before.astype(np.float32), after.astype(np.float32))
        cosine = np.where(difference == 0, 1.0, cosine)  # rows of zeros agree
        if name == HEAD:
            cosine = np.where(finite, 1.0, -1.0)  # one number has no direction
        self._tokens += len(error)
        self._nonfinite += int((~finite).sum())
        self._largest = max(self._largest, float(error[finite].max(initial=0.0)))
        self._cosine_sum += float(cosine.sum())
        self._cosine_min = min(self._cosine_min, float(cosine.min(initial=1.0)))
        place = (np.log10(np.maximum(error[finite], 1e-30)) - _LOWEST) * _BINS_A_DECADE
        bins = np.clip(place, 0, len(self._histogram) - 1).astype(np.int64)
        self._histogram += np.bincount(bins, minlength=len(self._histogram))

    def result(self) -> Drift:
        """Returns what was collected."""
        return Drift(
            tokens=self._tokens,
            nonfinite=self._nonfinite,
            error_max=None if self._nonfinite else self._largest,
            error_p99=self._quantile(0.99),
            cosine_min=self._cosine_min,
            cosine_mean=self._cosine_sum / max(self._tokens, 1),
        )

    def _quantile(self, share: float) -> float | None:
        wanted = math.ceil(share * self._tokens)
        reached = np.cumsum(self._histogram)
        if not wanted or reached[-1] < wanted:
            return None
        place = int(np.searchsorted(reached, wanted))
        return float(min(10.0 ** ((place + 1) / _BINS_A_DECADE + _LOWEST), self._largest))


def rows_of(name: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns a part's results as rows ``[rows, features]``, float64.

    A row is a token of ``[n, tokens, D]``, a patch of a patch embedding ``[n, D, rows, columns]``, and else
    all that belongs to one picture: single pixels have no scale of their own.
    """
    wide = values.astype(np.float64)
    if wide.ndim == 4 and name == PATCHES:
        return np.moveaxis(wide, 1, -1).reshape(-1, wide.shape[1])
    if wide.ndim == 3:
        return wide.reshape(-1, wide.shape[2])
    return wide.reshape(len(wide), -1)
