"""What two forms' logits on the same pictures say of each other. Temperature enters probabilities alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.pictures.data_set import Picture, labels_of
from export.parity.statistics.binomial import upper_bound
from export.parity.statistics.compare import Flip, changed_verdicts
from export.parity.statistics.ranking import Ranking, ranking
from runtime.decision import Decision
from runtime.names import utf8_name


@dataclass(frozen=True)
class Spread:
    """How large the absolute differences are; over those that are finite, None where none is."""

    largest: float | None
    mean: float | None
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, differences: NDArray[np.float64]) -> Spread:
        """Returns the spread of absolute differences ``[N]``."""
        if not differences.size:
            return cls(None, None, None, None)
        p50, p99 = np.quantile(differences, [0.5, 0.99])
        return cls(float(differences.max()), float(differences.mean()), float(p50), float(p99))


@dataclass(frozen=True)
class Cosines:
    """How two forms' embeddings agree, over the pictures.

    Attributes:
        smallest: cosine, the worst; -1 where an embedding is not finite.
        mean: of the cosines.
        length: largest |length of the form's embedding / the reference's - 1|, which a cosine does not see;
            None when it was not taken.
    """

    smallest: float
    mean: float
    length: float | None = None


@dataclass(frozen=True)
class Group:
    """One generator's share of a comparison."""

    name: str
    count: int
    max_abs_logit: float | None
    flips: int
    ap: tuple[float, float] | None
    auroc: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """One form against another on the same pictures.

    Attributes:
        reference: key of the form that is right by definition here.
        count: pictures compared.
        nonfinite: pictures on which either logit is NaN or infinite.
        logit: |difference of logits|.
        probability: |difference of probabilities|, after the temperature.
        cosine: of the embeddings; None where a form gives none.
        flips: every changed verdict, at the manifest's threshold.
        flips_at_half: how many change at a probability of 0.5.
        flip_bound: one-sided 95 % upper bound of the rate of flips, ties included.
        ranking: of the labelled pictures, (reference, form); None without both classes.
        groups: per generator.
    """

    reference: str
    count: int
    nonfinite: int
    logit: Spread
    probability: Spread
    cosine: Cosines | None
    flips: tuple[Flip, ...]
    flips_at_half: int
    flip_bound: float
    ranking: tuple[Ranking, Ranking] | None
    groups: tuple[Group, ...]

    @property
    def hard_flips(self) -> int:
        """Flips whose reference margin exceeds the tolerance."""
        return sum(not flip.tie for flip in self.flips)

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        ap = auroc = None
        if self.ranking is not None:
            before, after = self.ranking
            ap, auroc = _pair((before.ap, after.ap)), _pair((before.auroc, after.auroc))
        return {
            "reference": self.reference,
            "count": self.count,
            "nonfinite": self.nonfinite,
            "abs_logit": _spread_json(self.logit),
            "abs_probability": _spread_json(self.probability),
            "cosine": None
            if self.cosine is None
            else {
                "min": self.cosine.smallest,
                "mean": self.cosine.mean,
                "max_length_change": self.cosine.length,
            },
            "flips": [dict(vars(flip)) | {"item": utf8_name(flip.item)} for flip in self.flips],
            "hard_flips": self.hard_flips,
            "flips_at_half": self.flips_at_half,
            "flip_bound_95": self.flip_bound,
            "ap": ap,
            "auroc": auroc,
            "generators": [
                {
                    "name": utf8_name(group.name),
                    "count": group.count,
                    "max_abs_logit": group.max_abs_logit,
                    "flips": group.flips,
                    "ap": _pair(group.ap),
                    "auroc": _pair(group.auroc),
                }
                for group in self.groups
            ],
        }


def comparison(
    reference: str,
    pictures: Sequence[Picture],
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    *,
    cosines: NDArray[np.float64] | None,
    lengths: NDArray[np.float64] | None = None,
    decision: Decision,
    tie_below: float,
) -> Comparison:
    """Compares two forms' logits.

    Args:
        reference: key of the form that gave ``expected``.
        pictures: what was looked at, N of them.
        expected: raw logits, float32 ``[N]``.
        found: raw logits of the other form, float32 ``[N]``.
        cosines: of the embeddings, ``[N]``; None where there are none.
        lengths: of the form's embeddings over the reference's, ``[N]``; None where they were not taken.
        decision: the rule by which a verdict counts as changed.
        tie_below: a flip whose reference margin is at most this is a tie.
    """
    before, after = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(before) & np.isfinite(after)
    difference = np.abs(before[finite] - after[finite])
    probability = np.abs(_probability(before[finite], decision) - _probability(after[finite], decision))
    flips, flipped = changed_verdicts(
        [picture.name for picture in pictures], expected, found, decision=decision, tie_below=tie_below
    )
    labels = labels_of(list(pictures))
    names = np.array([picture.generator for picture in pictures], dtype=object)
    nonfinite = int((~finite).sum())
    return Comparison(
        reference=reference,
        count=len(before),
        nonfinite=nonfinite,
        logit=Spread.of(difference),
        probability=Spread.of(probability),
        cosine=None if cosines is None else _cosines(cosines, lengths),
        flips=flips,
        flips_at_half=int(((before[finite] >= 0) != (after[finite] >= 0)).sum()),
        # A picture without a finite logit has no verdict at all, which is no agreement.
        flip_bound=upper_bound(len(flips) + nonfinite, len(before)),
        ranking=_rankings(labels, expected, found),
        groups=tuple(
            _group(str(name), np.flatnonzero(names == name), labels, expected, found, flipped)
            for name in sorted(set(names))
        ),
    )


def _group(
    name: str,
    places: NDArray[np.int64],
    labels: NDArray[np.int64],
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    flipped: NDArray[np.bool_],
) -> Group:
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected[places].astype(np.float64) - found[places].astype(np.float64))
    ranked = _rankings(labels[places], expected[places], found[places])
    return Group(
        name=name,
        count=len(places),
        max_abs_logit=float(difference.max()) if np.isfinite(difference).all() else None,
        flips=int(flipped[places].sum()),
        ap=None if ranked is None else (ranked[0].ap, ranked[1].ap),
        auroc=None if ranked is None else (ranked[0].auroc, ranked[1].auroc),
    )


def _rankings(
    labels: NDArray[np.int64], expected: NDArray[np.float32], found: NDArray[np.float32]
) -> tuple[Ranking, Ranking] | None:
    known = labels >= 0
    before, after = ranking(labels[known], expected[known]), ranking(labels[known], found[known])
    return None if before is None or after is None else (before, after)


def _cosines(cosines: NDArray[np.float64], lengths: NDArray[np.float64] | None) -> Cosines:
    length = None if lengths is None else float(np.abs(lengths - 1).max())
    return Cosines(float(cosines.min()), float(cosines.mean()), length)


def _probability(logits: NDArray[np.float64], decision: Decision) -> NDArray[np.float64]:
    scaled = logits / decision.temperature
    small = np.exp(-np.abs(scaled))
    return np.asarray(np.where(scaled >= 0, 1.0, small) / (1.0 + small))


def _spread_json(spread: Spread) -> dict[str, float | None]:
    return {"max": spread.largest, "mean": spread.mean, "p50": spread.p50, "p99": spread.p99}


def _pair(values: tuple[float, float] | None) -> dict[str, float] | None:
    if values is None:
        return None
    return {"reference": values[0], "form": values[1], "change": values[1] - values[0]}
