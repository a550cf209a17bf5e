"""Temperature, threshold and uncertain band from a validation split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.decision import Decision
from runtime.errors import DataError, UsageError
from train.metrics import probabilities_from_logits

TEMPERATURES = np.geomspace(0.05, 20.0, 400)
# The boundary stays within this many temperatures of 0, so that the threshold keeps its digits as a
# probability: at 20 they tell logits apart that are 5e-8 temperatures from each other.
_WIDEST_BOUNDARY = 20.0
# 29 % of a hundred pictures are 29, although 0.29 * 100 falls short of it in binary.
_ROUNDING = 1e-9


def fit_decision(labels: NDArray[np.int64], logits: NDArray[np.float32], *, max_fpr: float) -> Decision:
    """Returns the temperature of least negative log-likelihood and the threshold of a false-positive rate.

    At most floor(max_fpr * R) of the R real pictures are called generated. The boundary is the middle
    between the highest real logit that must be called real and the next logit above it, of either class.
    Real pictures with equal logits get equal verdicts, so that with ties fewer are called generated.

    Args:
        labels: 0 real, 1 generated, ``[N]``.
        logits: raw, ``[N]``.
        max_fpr: allowed share of real pictures called generated, in (0, 1).

    Raises:
        UsageError: the rate is out of range.
        DataError: one class only, fewer real pictures than the rate can be read from, logits that are not
            finite, or logits so large or so close that no threshold separates them.
    """
    if not 0 < max_fpr < 1:
        raise UsageError(f"false-positive rate: found {max_fpr}, expected a share above 0 and below 1")
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("calibration: found logits that are not finite; the model overflows, train it again")
    real = np.sort(values[labels == 0])
    if real.size in (0, labels.size):
        raise DataError("calibration: found one class only, expected real and generated pictures")
    allowed = min(int(max_fpr * real.size + _ROUNDING), real.size - 1)
    if max_fpr * real.size + _ROUNDING < 1:
        raise DataError(
            f"calibration: {real.size} real pictures cannot show a false-positive rate of {max_fpr}; "
            f"give at least {int(np.ceil(1 / max_fpr - _ROUNDING))} or a higher --fpr"
        )
    last = float(real[real.size - 1 - allowed])
    above = values[values > last]
    boundary = (last + float(above.min())) / 2 if above.size else last + 1e-3
    temperature = _temperature(labels, values, least=abs(boundary) / _WIDEST_BOUNDARY)
    decision = Decision(float(1 / (1 + np.exp(-boundary / temperature))), temperature)
    called = int(decision.is_generated(real).sum())
    if called > allowed:
        raise DataError(
            f"calibration: no threshold keeps a false-positive rate of {max_fpr}: logits around {last:.6g} "
            f"are too close, {called} of {real.size} real pictures are called generated; give a higher --fpr"
        )
    return decision


def uncertain_band(decision: Decision, logits: NDArray[np.float32], *, share: float) -> tuple[float, float]:
    """Returns the band of probabilities around the threshold that holds a share of these pictures.

    It reaches equally far to both sides of the boundary in logits and holds at most floor(share * N) of the N
    pictures: the nearest ones. Pictures equally far from the boundary are in it together or not at all.

    Args:
        decision: threshold and temperature; its own band plays no part.
        logits: raw, ``[N]``.
        share: in (0, 1).

    Returns:
        (lo, hi); a picture is uncertain iff lo <= probability < hi.

    Raises:
        UsageError: the share is out of range.
        DataError: fewer pictures than the share can be read from, or too many at one distance.
    """
    if not 0 < share < 1:
        raise UsageError(f"uncertain share: found {share}, expected a share above 0 and below 1")
    distances = np.sort(np.abs(np.asarray(logits, dtype=np.float64) - decision.boundary_logit))
    wanted = min(int(share * distances.size + _ROUNDING), distances.size - 1)
    gaps = np.flatnonzero(distances[:-1] < distances[1:])  # the band may end behind picture k where it grows
    if wanted < 1 or not (gaps < wanted).any():
        raise DataError(
            f"calibration: {distances.size} pictures cannot show an uncertain share of {share}; "
            "give more pictures or a higher --uncertain-share"
        )
    last = int(gaps[gaps < wanted].max())
    reach = (distances[last] + distances[last + 1]) / 2
    ends = decision.boundary_logit + np.array([-reach, reach])
    low, high = probabilities_from_logits(ends, decision.temperature).tolist()
    return low, high


def _temperature(labels: NDArray[np.int64], logits: NDArray[np.float64], *, least: float) -> float:
    allowed = TEMPERATURES[least <= TEMPERATURES]
    if allowed.size == 0:
        raise DataError(
            f"calibration: found a boundary {least * _WIDEST_BOUNDARY:.4g} logits away from 0, expected at "
            f"most {TEMPERATURES[-1] * _WIDEST_BOUNDARY:.0f}; the model overflows, train it again"
        )
    signed = np.where(labels == 1, -logits, logits)
    losses = [np.logaddexp(0, signed / temperature).mean() for temperature in allowed]
    return float(allowed[int(np.argmin(losses))])
