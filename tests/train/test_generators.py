"""The row of one generator against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.decision import Decision
from runtime.errors import DataError
from train.evaluation.generators import METRIC_NAMES, GeneratorScore, generator_score, mean_row

# Sorted by logit: generated 4, real 3, generated 1, real -1, real -2, generated -3.
LABELS = np.array([1, 0, 1, 0, 0, 1])
LOGITS = np.array([4.0, 3.0, 1.0, -1.0, -2.0, -3.0], dtype=np.float32)
# Precision where each generated picture comes: 1/1, 2/3, 3/6.
AP = (1 + 2 / 3 + 1 / 2) / 3


def at_threshold(row: GeneratorScore) -> tuple[float, float, float]:
    return row.accuracy, row.real_accuracy, row.fake_accuracy


def at_half(row: GeneratorScore) -> tuple[float, float, float]:
    return row.accuracy_at_half, row.real_accuracy_at_half, row.fake_accuracy_at_half


def test_generator_score__counts_at_the_threshold_with_the_temperature() -> None:
    row = generator_score("g", LABELS, LOGITS, Decision(), None)
    assert (row.name, row.count, row.ap_low, row.ap_high) == ("g", 6, None, None)
    assert at_threshold(row) == at_half(row) == pytest.approx((4 / 6, 2 / 3, 2 / 3))
    assert (row.ap, row.auroc) == pytest.approx((AP, 5 / 9))
    # sigmoid(2) lies between the threshold's logits at temperature 1 (above 1) and at 2 (above 3).
    threshold = 1 / (1 + np.exp(-2.0))
    cold = generator_score("g", LABELS, LOGITS, Decision(threshold), None)
    assert at_threshold(cold) == pytest.approx((3 / 6, 2 / 3, 1 / 3))
    warm = generator_score("g", LABELS, LOGITS, Decision(threshold, 1.9), None)
    assert at_threshold(warm) == pytest.approx((4 / 6, 1.0, 1 / 3))
    assert at_half(cold) == at_half(warm) == at_half(row)  # neither threshold nor temperature moves it


def test_generator_score__measures_calibration_after_the_temperature() -> None:
    """Two bins, hand-made: at temperature 2 a logit of 2 ln 3 is 3/4 and right in 3 of 4."""
    logits = np.array([1, 1, 1, 1, -1, -1, -1, -1]) * 2 * np.log(3)
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    assert generator_score("g", labels, logits, Decision(temperature=2.0), None).ece == pytest.approx(0)
    # At temperature 1 it is 9/10, still right in 3 of 4.
    assert generator_score("g", labels, logits, Decision(), None).ece == pytest.approx(0.15)


def test_generator_score__decides_on_the_boundary_as_the_runtime_does() -> None:
    """In float32 the picture would lie on the boundary; as a number it lies below it."""
    logits = np.array([1.3, 2.0], dtype=np.float32)
    decision = Decision(threshold=float(1 / (1 + np.exp(-(float(logits[0]) + 1e-9)))))
    assert decision.judge(float(logits[0])).label == "real"
    assert np.float32(decision.boundary_logit) == logits[0]
    assert generator_score("g", np.array([0, 1]), logits, decision, None).real_accuracy == 1.0


def test_generator_score__refuses_one_class() -> None:
    with pytest.raises(DataError, match="g: found real pictures only, expected both"):
        generator_score("g", np.zeros(3, int), LOGITS[:3], Decision(), None)


def test_generator_score__resamples_sources_and_their_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.evaluation.generators.BOOTSTRAP_DRAWS", 150)
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


def width(row: GeneratorScore) -> float:
    assert row.ap_low is not None
    assert row.ap_high is not None
    return row.ap_high - row.ap_low


def test_mean_row__weighs_generators_equally() -> None:
    small = generator_score("a", LABELS, LOGITS, Decision(), None)
    large = generator_score("b", np.tile([0, 1], 50), np.tile([-1.0, 1.0], 50), Decision(), None)
    mean = mean_row([small, large])
    assert tuple(mean) == METRIC_NAMES
    assert mean["ece"] == pytest.approx((small.ece + large.ece) / 2)
    accuracies = {name: value for name, value in mean.items() if "accuracy" in name}
    assert accuracies == pytest.approx(
        {
            "accuracy": (4 / 6 + 1) / 2,
            "real_accuracy": (2 / 3 + 1) / 2,
            "fake_accuracy": (2 / 3 + 1) / 2,
            "accuracy_at_half": (4 / 6 + 1) / 2,
            "real_accuracy_at_half": (2 / 3 + 1) / 2,
            "fake_accuracy_at_half": (2 / 3 + 1) / 2,
        }
    )
    assert (mean["ap"], mean["auroc"]) == pytest.approx(((AP + 1) / 2, (5 / 9 + 1) / 2))


def test_to_json__has_a_valid_name() -> None:
    row = generator_score("a\udcff", LABELS, LOGITS, Decision(), None)
    assert row.to_json()["name"] == "a\ufffd"
