"""Each metric against scikit-learn or against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score

from runtime.decision import Decision
from runtime.errors import DataError, SpecError, UsageError
from train.metrics import (
    ECE_BINS,
    METRICS,
    auroc,
    average_precision,
    calibration_bins,
    expected_calibration_error,
    is_better,
    metric_of,
    probabilities_from_logits,
)

# Sorted by logit: generated 4, real 3, generated 1, real -1, real -2, generated -3.
LABELS = np.array([1, 0, 1, 0, 0, 1])
LOGITS = np.array([4.0, 3.0, 1.0, -1.0, -2.0, -3.0], dtype=np.float32)


def test_average_precision__is_that_of_the_hand() -> None:
    # Precision where each generated picture comes: 1/1, 2/3, 3/6.
    assert average_precision(LABELS.tolist(), LOGITS) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def test_auroc__is_that_of_the_hand() -> None:
    # Pairs (generated, real) in the right order: 3 below 4, 2 below 1, none below -3.
    assert auroc(LABELS, LOGITS) == pytest.approx(5 / 9)


@pytest.mark.parametrize("seed", range(5))
def test_metric_of__is_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, 200)
    logits = (draw.normal(0, 2, 200) + labels).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert metric_of("ap", labels, logits) == pytest.approx(average_precision_score(labels, logits))
    assert metric_of("auroc", labels, logits) == pytest.approx(roc_auc_score(labels, logits))
    assert metric_of("accuracy", labels, logits) == pytest.approx(accuracy_score(labels, logits >= 0))
    assert metric_of("loss", labels, logits) == pytest.approx(log_loss(labels, probabilities))


def test_metric_of__counts_a_probability_of_one_half_as_generated() -> None:
    assert Decision().judge(0.0).label == "generated"
    assert metric_of("accuracy", [1, 0], [0.0, 0.0]) == 0.5
    assert metric_of("accuracy", [1, 1], [0.0, 5.0]) == 1.0  # one class is enough here


def test_metric_of__keeps_the_loss_of_large_logits() -> None:
    assert metric_of("loss", [1, 0], [-1000.0, -1000.0]) == pytest.approx(500.0)


@pytest.mark.parametrize("name", METRICS)
def test_metric_of__refuses_what_has_no_value(name: str) -> None:
    for wrong in (math.nan, math.inf):
        with pytest.raises(SpecError, match=r"logit: found (nan|inf), expected finite"):
            metric_of(name, [0, 1], [0.0, wrong])
    with pytest.raises(DataError, match="no pictures"):
        metric_of(name, [], [])


def test_metric_of__refuses_one_class_and_unknown_names() -> None:
    for name in ("ap", "auroc"):
        with pytest.raises(DataError, match="generated pictures only"):
            metric_of(name, [1, 1], [0.0, 1.0])
    with pytest.raises(UsageError, match="found 'f1', expected one of ap, auroc, accuracy, loss"):
        metric_of("f1", [0, 1], [0.0, 1.0])


@pytest.mark.parametrize("name", METRICS)
def test_is_better__knows_the_direction(name: str) -> None:
    sign = -1 if name == "loss" else 1
    assert is_better(name, 0.5 + 0.1 * sign, 0.5)
    assert not is_better(name, 0.5 - 0.1 * sign, 0.5)
    assert not is_better(name, 0.5, 0.5)
    assert is_better(name, 0.0, None)
    assert not is_better(name, math.nan, None)
    assert not is_better(name, math.nan, 0.5)


def test_is_better__refuses_unknown_names() -> None:
    with pytest.raises(UsageError, match="found 'f1'"):
        is_better("f1", 1.0, None)


def test_probabilities_from_logits__are_those_of_judge() -> None:
    decision = Decision(temperature=1.7)
    logits = np.array([-800.0, -3.3, -0.0, 0.2, 7.0, 800.0], dtype=np.float32)
    expected = [decision.judge(float(logit)).probability for logit in logits]
    assert probabilities_from_logits(logits, 1.7) == pytest.approx(expected, rel=1e-12)


def test_expected_calibration_error__is_that_of_the_hand() -> None:
    # Two bins in use: 0.02 and 0.04 in the first (share generated 1/2), 0.9 thrice in another (share 1/3).
    labels, probabilities = [0, 1, 1, 0, 0], [0.02, 0.04, 0.9, 0.9, 0.9]
    expected = 2 / 5 * abs(1 / 2 - 0.03) + 3 / 5 * abs(1 / 3 - 0.9)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(expected)


def test_expected_calibration_error__is_0_of_what_is_calibrated_and_1_of_what_is_wrong() -> None:
    assert expected_calibration_error([0, 1], [0.0, 1.0]) == 0.0
    assert expected_calibration_error([1, 0], [0.0, 1.0]) == 1.0
    draw = np.random.default_rng(0)
    probabilities = draw.random(100_000)
    labels = (draw.random(100_000) < probabilities).astype(int)
    assert expected_calibration_error(labels, probabilities) < 0.01
    assert expected_calibration_error(labels, probabilities**2) > 0.1


def test_calibration_bins__are_closed_below() -> None:
    edges = np.arange(ECE_BINS + 1) / ECE_BINS
    count, mean, share = calibration_bins([1] * (ECE_BINS + 1), edges + 1e-12 * (edges < 1))
    assert count.tolist() == [1] * (ECE_BINS - 1) + [2]  # 1 itself belongs to the last bin
    assert mean[0] == pytest.approx(0, abs=1e-9)
    assert share.tolist() == [1.0] * ECE_BINS
    count, mean, share = calibration_bins([1], [0.5])
    assert count.sum() == 1
    assert np.isnan(mean).sum() == np.isnan(share).sum() == ECE_BINS - 1
