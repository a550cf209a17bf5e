"""What a set of logits is worth against its labels: average precision, AUROC, accuracy, loss, calibration.

The label 1, generated, is the positive class everywhere. Imports scikit-learn on the first call only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import DataError, SpecError, UsageError

METRICS = ("ap", "auroc", "accuracy", "loss")
ECE_BINS = 15


def metric_of(name: str, labels: ArrayLike, logits: ArrayLike) -> float:
    """Returns one named metric of a validation split.

    Args:
        name: "ap", "auroc", "accuracy" (at a probability of 0.5, which counts as generated) or "loss" (the
            mean binary cross-entropy).
        labels: 0 real, 1 generated, ``[N]``.
        logits: raw, ``[N]``.

    Raises:
        UsageError: the name is unknown.
        SpecError: a logit is not finite.
        DataError: no pictures, or for "ap" and "auroc" one class only.
    """
    truth, values = _checked(labels, logits)
    if name == "ap":
        return average_precision(truth, values)
    if name == "auroc":
        return auroc(truth, values)
    if name == "accuracy":
        return float(((values >= 0) == (truth == 1)).mean())
    if name == "loss":
        return float(np.logaddexp(0.0, np.where(truth == 1, -values, values)).mean())
    raise UsageError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}")


def is_better(name: str, new: float, best: float | None) -> bool:
    """Says whether a metric's new value beats the best so far: lower for "loss", higher for the others.

    Equal is not better, and NaN beats nothing; with no best so far every number is better.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in METRICS:
        raise UsageError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}")
    if math.isnan(new) or best is None:
        return not math.isnan(new)
    return new < best if name == "loss" else new > best


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Returns scikit-learn's average precision: the sum of precision times the step in recall.

    Args:
        labels: 0 or 1, ``[N]``.
        scores: of any scale, ``[N]``; higher means generated.

    Raises:
        SpecError: a score is not finite.
        DataError: one class only.
    """
    from sklearn.metrics import average_precision_score

    truth, values = _checked(labels, scores, needs_both=True)
    return float(average_precision_score(truth, values))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Returns the area under the ROC curve; arguments and errors as of ``average_precision``."""
    from sklearn.metrics import roc_auc_score

    truth, values = _checked(labels, scores, needs_both=True)
    return float(roc_auc_score(truth, values))


def probabilities_from_logits(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Returns sigmoid(logit / temperature), float64 of the logits' shape."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    small = np.exp(-np.abs(scaled))
    return np.asarray(np.where(scaled >= 0, 1.0, small) / (1.0 + small))


def calibration_bins(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns (count, mean probability, share of generated pictures) of each bin.

    There are 15 bins of equal width over 0..1, closed below, the last one closed above too. An empty bin has
    NaN for both means.

    Args:
        labels: 0 or 1, ``[N]``.
        probabilities: that the picture is generated, in 0..1, ``[N]``.

    Returns:
        int64, float64 and float64, each ``[15]``.
    """
    truth = np.asarray(labels, dtype=np.float64)
    values = np.asarray(probabilities, dtype=np.float64)
    places = np.minimum((values * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    count = np.bincount(places, minlength=ECE_BINS)
    filled = np.where(count > 0, count, np.nan)
    mean = np.bincount(places, weights=values, minlength=ECE_BINS) / filled
    share = np.bincount(places, weights=truth, minlength=ECE_BINS) / filled
    return count, mean, share


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Returns the ECE of the probability that a picture is generated.

    ECE = sum over the bins of ``calibration_bins`` of (count / N) * |share generated - mean probability|. It
    is that of the positive class: over 0..1, not of the more likely class over 0.5..1.

    Args:
        labels: 0 or 1, ``[N]``.
        probabilities: that the picture is generated, after the temperature, ``[N]``.
    """
    count, mean, share = calibration_bins(labels, probabilities)
    used = count > 0
    return float((count[used] * np.abs(share[used] - mean[used])).sum() / count.sum())


def require_both_classes(place: str, labels: Sequence[int] | NDArray[np.int64]) -> None:
    """Checks that pictures of both classes are there.

    Raises:
        DataError: one of the classes is missing.
    """
    present = set(np.asarray(labels).tolist())
    if present != {0, 1}:
        found = "no pictures" if not present else f"{'generated' if 1 in present else 'real'} pictures only"
        raise DataError(f"{place}: found {found}, expected both real and generated ones")


def _checked(
    labels: ArrayLike, scores: ArrayLike, *, needs_both: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, values = np.asarray(labels, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        wrong = values[~np.isfinite(values)][0]
        raise SpecError(f"logit: found {wrong}, expected finite numbers; the model overflows, train it again")
    if needs_both or not truth.size:
        require_both_classes("metric", truth)
    return truth, values
