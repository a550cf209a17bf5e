"""Which of two bundles is right more often, on pictures whose labels are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.statistics.binomial import sign_test
from export.parity.statistics.ranking import Ranking, ranking


@dataclass(frozen=True)
class Truth:
    """How right both are on labelled pictures.

    Attributes:
        count: labelled pictures with both verdicts.
        accuracy: share of right verdicts, (old, new).
        broken: right before, wrong now.
        repaired: wrong before, right now.
        chance: that the two differ at least so much if neither were better: McNemar's exact test.
        ranking: (old, new); None without both classes.
    """

    count: int
    accuracy: tuple[float, float]
    broken: int
    repaired: int
    chance: float
    ranking: tuple[Ranking, Ranking] | None

    def line(self) -> str:
        """Returns it for a person."""
        text = (
            f"accuracy {self.accuracy[0]:.4f} -> {self.accuracy[1]:.4f} ({self.broken} right before and "
            f"wrong now, {self.repaired} the reverse, p {self.chance:.2g})"
        )
        if self.ranking is not None:
            text += f", AP {self.ranking[0].ap:.4f} -> {self.ranking[1].ap:.4f}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        before, after = self.ranking or (None, None)
        return {
            "count": self.count,
            "accuracy": list(self.accuracy),
            "broken": self.broken,
            "repaired": self.repaired,
            "mcnemar_p": self.chance,
            "ap": None if before is None or after is None else [before.ap, after.ap],
            "auroc": None if before is None or after is None else [before.auroc, after.auroc],
        }


def truth_of(
    labels: NDArray[np.int64],
    was: NDArray[np.bool_],
    now: NDArray[np.bool_],
    logits: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Truth:
    """Returns how right both are.

    Args:
        labels: 0 real, 1 generated, int64 ``[N]``, N at least 1.
        was: which pictures the old bundle calls generated, ``[N]``.
        now: which the new one does, ``[N]``.
        logits: raw, float64 ``[N]`` of the old bundle and of the new one.
    """
    right_before, right_now = was == (labels == 1), now == (labels == 1)
    broken, repaired = int((right_before & ~right_now).sum()), int((~right_before & right_now).sum())
    before, after = (ranking(labels, values.astype(np.float32)) for values in logits)
    return Truth(
        count=len(labels),
        accuracy=(float(right_before.mean()), float(right_now.mean())),
        broken=broken,
        repaired=repaired,
        chance=sign_test(broken, repaired),
        ranking=None if before is None or after is None else (before, after),
    )
