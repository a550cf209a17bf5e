"""The row of one generator: its metrics at the decision's threshold and at 0.5, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decision import Decision
from runtime.names import utf8_name
from train.metrics import (
    auroc,
    average_precision,
    expected_calibration_error,
    probabilities_from_logits,
    require_both_classes,
)

BOOTSTRAP_DRAWS = 1000
# What the mean over generators is taken of.
METRIC_NAMES = (
    "accuracy", "real_accuracy", "fake_accuracy", "accuracy_at_half", "real_accuracy_at_half",
    "fake_accuracy_at_half", "ap", "auroc", "ece",
)  # fmt: skip


@dataclass(frozen=True)
class GeneratorScore:
    """Results on one generator's folder, in 0..1.

    Attributes:
        name: the generator.
        count: pictures that were scored, both classes.
        accuracy: at the decision's threshold.
        real_accuracy: share of real pictures called real (r_acc).
        fake_accuracy: share of generated pictures called generated (f_acc).
        accuracy_at_half: as ``accuracy``, at a probability of 0.5, which is a logit of 0 at any temperature.
        real_accuracy_at_half: as ``real_accuracy``, at 0.5.
        fake_accuracy_at_half: as ``fake_accuracy``, at 0.5.
        ap: average precision, generated is positive.
        auroc: area under the ROC curve.
        ece: expected calibration error of the probability after the temperature, in 15 bins of equal width.
        ap_low: 2.5 % point of the bootstrap over sources and their pictures; None without sources.
        ap_high: 97.5 % point.
    """

    name: str
    count: int
    accuracy: float
    real_accuracy: float
    fake_accuracy: float
    accuracy_at_half: float
    real_accuracy_at_half: float
    fake_accuracy_at_half: float
    ap: float
    auroc: float
    ece: float
    ap_low: float | None
    ap_high: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a JSON object; a name that is not UTF-8 carries U+FFFD."""
        return dict(vars(self)) | {"name": utf8_name(self.name)}


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
    require_both_classes(utf8_name(name), labels)
    low, high = (None, None) if groups is None else _bootstrap(labels, logits, groups, seed)
    accuracy, real_accuracy, fake_accuracy = _accuracies(labels, decision.is_generated(logits))
    half, real_half, fake_half = _accuracies(labels, np.asarray(logits) >= 0)
    return GeneratorScore(
        name=name,
        count=len(labels),
        accuracy=accuracy,
        real_accuracy=real_accuracy,
        fake_accuracy=fake_accuracy,
        accuracy_at_half=half,
        real_accuracy_at_half=real_half,
        fake_accuracy_at_half=fake_half,
        ap=average_precision(labels, logits),
        auroc=auroc(labels, logits),
        ece=expected_calibration_error(labels, probabilities_from_logits(logits, decision.temperature)),
        ap_low=low,
        ap_high=high,
    )


def mean_row(rows: Sequence[GeneratorScore]) -> dict[str, float]:
    """Returns the unweighted mean over generators of each of ``METRIC_NAMES``."""
    return {key: float(np.mean([getattr(row, key) for row in rows])) for key in METRIC_NAMES}


def _accuracies(labels: NDArray[np.int64], called: NDArray[np.bool_]) -> tuple[float, float, float]:
    fake = labels == 1
    return float((called == fake).mean()), float((~called[~fake]).mean()), float(called[fake].mean())


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
            points.append(average_precision(labels[chosen], logits[chosen]))
    low, high = np.quantile(points, [0.025, 0.975])
    return float(low), float(high)
