"""Average precision and AUROC of logits against labels, in numpy: a gate must run where scikit-learn is not.

The definitions are scikit-learn's, with which the tests compare them: tied scores count as one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranking:
    """How well logits order pictures; generated is the positive class."""

    ap: float
    auroc: float


def ranking(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> Ranking | None:
    """Returns AP and AUROC; None with one class only, or where a logit is not finite.

    Args:
        labels: 0 real, 1 generated, ``[N]``.
        logits: raw, ``[N]``.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives or not np.isfinite(logits).all():
        return None
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    scores, truth = logits[order], labels[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits = np.cumsum(truth)[ends].astype(np.float64)
    misses = (ends + 1) - hits
    precision = hits / (ends + 1)
    ap = float(np.sum(np.diff(hits, prepend=0.0) * precision) / positives)
    heights = (hits + np.concatenate([[0.0], hits[:-1]])) / 2
    auroc = float(np.sum(np.diff(misses, prepend=0.0) * heights) / (positives * negatives))
    return Ranking(ap, auroc)
