"""The table of an evaluation against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.decision import Decision
from runtime.errors import DataError
from train.evaluation import mean_row
from train.metrics import average_precision, generator_score

# Sorted by logit: generated 4, real 3, generated 1, real -1, real -2, generated -3.
LABELS = np.array([1, 0, 1, 0, 0, 1])
LOGITS = np.array([4.0, 3.0, 1.0, -1.0, -2.0, -3.0], dtype=np.float32)
# Precision where each generated picture comes: 1/1, 2/3, 3/6.
AP = (1 + 2 / 3 + 1 / 2) / 3


def test_average_precision__is_that_of_the_hand() -> None:
    assert average_precision(LABELS.tolist(), LOGITS) == pytest.approx(AP)


def test_generator_score__counts_at_the_threshold_with_the_temperature() -> None:
    row = generator_score("g", LABELS, LOGITS, Decision(), None)
    assert (row.name, row.count, row.ap_low, row.ap_high) == ("g", 6, None, None)
    assert (row.accuracy, row.real_accuracy, row.fake_accuracy) == pytest.approx((4 / 6, 2 / 3, 2 / 3))
    assert row.ap == pytest.approx(AP)
    # sigmoid(2) lies between the threshold's logits at temperature 1 (above 1) and at 2 (above 3).
    threshold = 1 / (1 + np.exp(-2.0))
    cold = generator_score("g", LABELS, LOGITS, Decision(threshold), None)
    assert (cold.accuracy, cold.real_accuracy, cold.fake_accuracy) == pytest.approx((3 / 6, 2 / 3, 1 / 3))
    warm = generator_score("g", LABELS, LOGITS, Decision(threshold, 1.9), None)
    assert (warm.accuracy, warm.real_accuracy, warm.fake_accuracy) == pytest.approx((4 / 6, 1.0, 1 / 3))


def test_generator_score__decides_on_the_boundary_as_the_runtime_does() -> None:
    """In float32 the picture would lie on the boundary; as a number it lies below it."""
    logits = np.array([1.3, 2.0], dtype=np.float32)
    decision = Decision(threshold=float(1 / (1 + np.exp(-(float(logits[0]) + 1e-9)))))
    assert decision.judge(float(logits[0])).label == "real"
    assert np.float32(decision.boundary_logit) == logits[0]
    assert generator_score("g", np.array([0, 1]), logits, decision, None).real_accuracy == 1.0


def test_generator_score__refuses_one_class() -> None:
    with pytest.raises(DataError, match="g: found one class only"):
        generator_score("g", np.zeros(3, int), LOGITS[:3], Decision(), None)


def test_generator_score__resamples_sources_and_their_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.metrics.BOOTSTRAP_DRAWS", 300)
    draw = np.random.default_rng(3)
    labels = np.repeat([0, 1], 60)
    # Twelve sources of ten pictures that look alike: worth little more than twelve pictures.
    logits = (np.repeat(draw.normal(0, 1, 12), 10) + 0.1 * draw.normal(0, 1, 120) + labels).astype(np.float32)
    groups = [f"photo {k // 10}" for k in range(120)]
    row = generator_score("g", labels, logits, Decision(), groups)
    assert row.ap_low is not None
    assert row.ap_high is not None
    assert row.ap_low < row.ap < row.ap_high
    assert generator_score("g", labels, logits, Decision(), groups) == row  # the same seed
    alone = generator_score("g", labels, logits, Decision(), [str(k) for k in range(120)])
    assert width(row) > 1.5 * width(alone)
    # One source alone still varies: its pictures are drawn too.
    assert width(generator_score("g", labels, logits, Decision(), ["one"] * 120)) > 0.05


def width(row: object) -> float:
    return row.ap_high - row.ap_low


def test_mean_row__weighs_generators_equally() -> None:
    small = generator_score("a", LABELS, LOGITS, Decision(), None)
    large = generator_score("b", np.tile([0, 1], 50), np.tile([-1.0, 1.0], 50), Decision(), None)
    assert mean_row([small, large]) == pytest.approx(
        {
            "accuracy": (4 / 6 + 1) / 2,
            "ap": (AP + 1) / 2,
            "real_accuracy": (2 / 3 + 1) / 2,
            "fake_accuracy": (2 / 3 + 1) / 2,
        }
    )
