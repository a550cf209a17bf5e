"""Temperature and threshold from a validation split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.decision import Decision
from runtime.errors import DataError

TEMPERATURES = np.geomspace(0.05, 20.0, 400)


def fit_decision(labels: NDArray[np.int64], logits: NDArray[np.float32], *, max_fpr: float) -> Decision:
    """Returns the temperature of least negative log-likelihood and the threshold of a false-positive rate.

    The threshold is the lowest at which at most ``max_fpr`` of the real pictures are called generated.

    Args:
        labels: 0 real, 1 generated, ``[N]``.
        logits: raw, ``[N]``.
        max_fpr: allowed share of real pictures called generated, in [0, 1).

    Raises:
        DataError: one class only, or fewer real pictures than the rate can be read from.
    """
    real = np.sort(logits[labels == 0].astype(np.float64))
    if real.size == 0 or real.size == labels.size:
        raise DataError("calibration: found one class only, expected real and generated pictures")
    if max_fpr * real.size < 1:
        raise DataError(
            f"calibration: {real.size} real pictures cannot show a false-positive rate of {max_fpr}; "
            f"give at least {int(np.ceil(1 / max_fpr)) if max_fpr else 'more'} or a higher --fpr"
        )
    signed = np.where(labels == 1, -logits, logits).astype(np.float64)
    losses = [np.logaddexp(0, signed / t).mean() for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    # The boundary lies just above the highest real logit that must still be called real.
    allowed = int(np.floor(max_fpr * real.size))
    boundary = np.nextafter(real[real.size - 1 - allowed], np.inf)
    threshold = float(1 / (1 + np.exp(-boundary / temperature)))
    return Decision(threshold=min(max(threshold, 1e-9), 1 - 1e-9), temperature=temperature)
