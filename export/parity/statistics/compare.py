"""One hop of parity: the reference's logits against another form's, on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.statistics.embeddings import cosine_rows
from runtime.decision import Decision
from runtime.errors import SpecError

# What stands for the difference where a side is NaN or infinite: larger than any, and JSON can hold it.
WORST = float(np.finfo(np.float64).max)
Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]


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
        flips: every changed verdict. One that is no tie differs by more than the tolerance, so it fails the
            hop through ``max_abs_logit``.
        max_allowed: largest |difference of logits| that is allowed.
        cosine_allowed: smallest cosine that is allowed.
    """

    hop: str
    count: int
    max_abs_logit: float
    mean_abs_logit: float
    min_cosine: float | None
    flips: tuple[Flip, ...]
    max_allowed: float
    cosine_allowed: float

    @property
    def hard_flips(self) -> int:
        """Flips whose reference margin exceeds the tolerance."""
        return sum(not flip.tie for flip in self.flips)

    @property
    def passed(self) -> bool:
        """Whether the hop is within its limits."""
        embedding = self.min_cosine is None or self.min_cosine >= self.cosine_allowed
        return self.max_abs_logit <= self.max_allowed and embedding

    def line(self) -> str:
        """Returns the hop as one line for a person."""
        cosine = ""
        if self.min_cosine is not None:
            cosine = f", cosine 1 - {1 - self.min_cosine:.1e} (limit 1 - {1 - self.cosine_allowed:.1e})"
        return (
            f"{'passed' if self.passed else 'FAILED'}  {self.hop}: {self.count} pictures, max |dlogit| "
            f"{self.max_abs_logit:.2e} (limit {self.max_allowed:g}), mean {self.mean_abs_logit:.2e}{cosine}, "
            f"{len(self.flips)} flips, {self.hard_flips} of them hard"
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
            "limits": {"max_abs_logit": self.max_allowed, "min_cosine": self.cosine_allowed},
        }


@dataclass(frozen=True)
class Limits:
    """What a hop may differ by: |difference of logits|, and cosine of embeddings."""

    max_abs_logit: float
    min_cosine: float


def compare_logits(
    hop: str,
    items: Sequence[str],
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    *,
    decision: Decision,
    limits: Limits,
    embeddings: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> HopReport:
    """Compares two forms of the model on the same pictures, by raw logits; temperature never enters.

    Args:
        hop: what is compared, for the report.
        items: a name per picture.
        reference: logits of the form that is right by definition, float32 ``[N]``.
        logits: logits of the other form, float32 ``[N]``.
        decision: the rule by which a verdict counts as changed.
        limits: what is allowed.
        embeddings: (reference, other), float32 ``[N, D]`` each.

    Raises:
        SpecError: nothing to compare, or the lengths differ.
    """
    if not len(items) == len(reference) == len(logits) or not len(items):
        raise SpecError(f"{hop}: found {len(reference)} and {len(logits)} logits for {len(items)} pictures")
    # A NaN or Inf on either side is the largest difference there is, never one that a max() overlooks.
    with np.errstate(invalid="ignore"):
        difference = np.abs(reference.astype(np.float64) - logits.astype(np.float64))
    finite = np.isfinite(difference)
    flips, _ = changed_verdicts(items, reference, logits, decision=decision, tie_below=limits.max_abs_logit)
    return HopReport(
        hop=hop,
        count=len(items),
        max_abs_logit=float(difference.max()) if finite.all() else WORST,
        mean_abs_logit=float(difference.mean()) if finite.all() else WORST,
        min_cosine=None if embeddings is None else _min_cosine(hop, *embeddings),
        flips=flips,
        max_allowed=limits.max_abs_logit,
        cosine_allowed=limits.min_cosine,
    )


def changed_verdicts(
    items: Sequence[str],
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    *,
    decision: Decision,
    tie_below: float,
) -> tuple[tuple[Flip, ...], NDArray[np.bool_]]:
    """Returns every changed verdict, and which pictures have one, bool ``[N]``.

    A picture without a finite logit on either side has no verdict, so it is none of them.

    Args:
        items: a name per picture.
        reference: raw logits, float32 ``[N]``.
        logits: raw logits of the other form, float32 ``[N]``.
        decision: the rule by which a verdict counts as changed.
        tie_below: a flip whose reference margin is at most this is a tie.
    """
    finite = np.isfinite(reference) & np.isfinite(logits)
    margin = reference.astype(np.float64) - decision.boundary_logit
    flipped = np.zeros(len(items), dtype=bool)
    flipped[finite] = decision.is_generated(reference[finite]) != decision.is_generated(logits[finite])
    flips = tuple(
        Flip(
            item=items[k],
            reference_logit=float(reference[k]),
            logit=float(logits[k]),
            margin=float(margin[k]),
            tie=bool(abs(margin[k]) <= tie_below),
        )
        for k in np.flatnonzero(flipped).tolist()
    )
    return flips, flipped


def _min_cosine(hop: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if a.shape != b.shape:
        raise SpecError(f"{hop}: found embeddings of shape {list(b.shape)}, expected {list(a.shape)}")
    return float(cosine_rows(a, b).min())
