"""Accuracy and average precision per generator, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decision import Decision
from runtime.errors import DataError

BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True)
class GeneratorScore:
    """Results on one generator's folder, in 0..1.

    Attributes:
        name: the generator.
        count: pictures, both classes.
        accuracy: at the decision's threshold.
        real_accuracy: share of real pictures called real.
        fake_accuracy: share of generated pictures called generated.
        ap: average precision, generated is positive.
        ap_low: 2.5 % point of the bootstrap over sources and their pictures; None without sources.
        ap_high: 97.5 % point.
    """

    name: str
    count: int
    accuracy: float
    real_accuracy: float
    fake_accuracy: float
    ap: float
    ap_low: float | None
    ap_high: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a JSON object."""
        return dict(vars(self))


def average_precision(labels: Sequence[int], scores: NDArray[np.float32]) -> float:
    """Returns scikit-learn's average precision with the label 1 as positive."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(np.asarray(labels), scores))


def generator_score(
    name: str,
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    decision: Decision,
    groups: Sequence[str] | None,
    *,
    seed: int = 0,
) -> GeneratorScore:
    """Returns the scores of one generator.

    Args:
        name: the generator.
        labels: 0 real, 1 generated, ``[N]``.
        logits: raw, ``[N]``.
        decision: threshold and temperature.
        groups: what each picture was made from. The interval resamples sources, since crops of one
            photograph are not independent, and then the pictures inside each source that was drawn.
        seed: of the bootstrap.

    Raises:
        DataError: one of the classes is missing.
        SpecError: a logit is not finite.
    """
    real, fake = labels == 0, labels == 1
    if not real.any() or not fake.any():
        raise DataError(f"{name}: found one class only, expected pictures in both 0_real and 1_fake")
    called_fake = decision.is_generated(logits)
    low, high = (None, None) if groups is None else _bootstrap(labels, logits, groups, seed)
    return GeneratorScore(
        name=name,
        count=len(labels),
        accuracy=float((called_fake == fake).mean()),
        real_accuracy=float((~called_fake[real]).mean()),
        fake_accuracy=float(called_fake[fake].mean()),
        ap=average_precision(labels.tolist(), logits),
        ap_low=low,
        ap_high=high,
    )


def _bootstrap(
    labels: NDArray[np.int64], logits: NDArray[np.float32], groups: Sequence[str], seed: int
) -> tuple[float, float]:
    names = sorted(set(groups))
    members = {name: np.flatnonzero(np.asarray(groups) == name) for name in names}
    draw = np.random.default_rng(seed)
    points = []
    for _ in range(BOOTSTRAP_DRAWS):
        # Two levels: which sources, then which of their pictures; with few sources the first alone
        # would take a handful of values only.
        chosen = np.concatenate(
            [
                draw.choice(members[names[k]], len(members[names[k]]))
                for k in draw.integers(len(names), size=len(names))
            ]
        )
        if len(set(labels[chosen].tolist())) == 2:
            points.append(average_precision(labels[chosen].tolist(), logits[chosen]))
    low, high = np.quantile(points, [0.025, 0.975])
    return float(low), float(high)
