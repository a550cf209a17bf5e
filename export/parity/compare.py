"""One hop of parity: the reference's logits against another form's, on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SpecError


@dataclass(frozen=True)
class Flip:
    """A picture on which two forms disagree; ``tie`` when the reference's margin is inside the tolerance."""

    item: str
    reference_logit: float
    logit: float
    margin: float
    tie: bool


@dataclass(frozen=True)
class HopReport:
    """The outcome of one hop.

    Attributes:
        hop: what was compared with what.
        count: pictures compared.
        max_abs_logit: largest |difference of logits|.
        mean_abs_logit: their mean.
        min_cosine: smallest cosine of the embeddings; None when they were not compared.
        flips: every changed verdict.
        tolerance: largest |difference of logits| that is allowed.
        max_hard_flips: how many flips that are not ties are allowed.
    """

    hop: str
    count: int
    max_abs_logit: float
    mean_abs_logit: float
    min_cosine: float | None
    flips: tuple[Flip, ...]
    tolerance: float
    max_hard_flips: int

    @property
    def hard_flips(self) -> int:
        """Flips whose reference margin exceeds the tolerance."""
        return sum(not flip.tie for flip in self.flips)

    @property
    def passed(self) -> bool:
        """Whether the hop is within its limits."""
        return self.max_abs_logit <= self.tolerance and self.hard_flips <= self.max_hard_flips

    def line(self) -> str:
        """Returns the hop as one line for a person."""
        cosine = "" if self.min_cosine is None else f", cosine >= {self.min_cosine:.6f}"
        return (
            f"{'passed' if self.passed else 'FAILED'}  {self.hop}: {self.count} pictures, max |dlogit| "
            f"{self.max_abs_logit:.2e} (limit {self.tolerance:g}), mean {self.mean_abs_logit:.2e}{cosine}, "
            f"flips {len(self.flips)} ({self.hard_flips} hard, limit {self.max_hard_flips})"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        return {
            "hop": self.hop,
            "status": "passed" if self.passed else "failed",
            "count": self.count,
            "max_abs_logit": self.max_abs_logit,
            "mean_abs_logit": self.mean_abs_logit,
            "min_cosine": self.min_cosine,
            "flips": [dict(vars(flip)) for flip in self.flips],
            "hard_flips": self.hard_flips,
            "limits": {"max_abs_logit": self.tolerance, "max_hard_flips": self.max_hard_flips},
        }


def compare_logits(
    hop: str,
    items: Sequence[str],
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    *,
    boundary: float,
    tolerance: float,
    max_hard_flips: int = 0,
    embeddings: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> HopReport:
    """Compares two forms of the model on the same pictures, by raw logits; temperature never enters.

    Args:
        hop: what is compared, for the report.
        items: a name per picture.
        reference: logits of the form that is right by definition, float32 ``[N]``.
        logits: logits of the other form, float32 ``[N]``.
        boundary: raw logit at which the verdict changes.
        tolerance: largest |difference| that is allowed.
        max_hard_flips: how many verdicts may change whose reference margin exceeds the tolerance.
        embeddings: (reference, other), float32 ``[N, D]`` each.

    Raises:
        SpecError: nothing to compare, or the lengths differ.
    """
    if not len(items) == len(reference) == len(logits) or not len(items):
        raise SpecError(f"{hop}: found {len(reference)} and {len(logits)} logits for {len(items)} pictures")
    # A NaN or Inf on either side is the largest difference there is, never one that a max() overlooks.
    difference = np.abs(reference.astype(np.float64) - logits.astype(np.float64))
    difference = np.where(np.isfinite(difference), difference, np.finfo(np.float64).max)
    margin = reference.astype(np.float64) - boundary
    flipped = (reference >= boundary) != (logits >= boundary)
    flips = tuple(
        Flip(
            items[k],
            float(reference[k]),
            float(logits[k]),
            float(margin[k]),
            bool(abs(margin[k]) <= tolerance),
        )
        for k in np.flatnonzero(flipped & np.isfinite(logits)).tolist()
    )
    return HopReport(
        hop=hop,
        count=len(items),
        max_abs_logit=float(difference.max()),
        mean_abs_logit=float(difference.mean()) if difference.max() < 1e300 else float(difference.max()),
        min_cosine=None if embeddings is None else _min_cosine(*embeddings),
        flips=flips,
        tolerance=tolerance,
        max_hard_flips=max_hard_flips,
    )


def _min_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    cosine = float((np.sum(a64 * b64, axis=1) / np.maximum(norms, 1e-300)).min())
    return cosine if np.isfinite(cosine) else -1.0
