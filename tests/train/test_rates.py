"""What a calibration says about itself: rates, exact intervals, folder by folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from runtime.decision import Decision
from train.data.layout import Sample
from train.evaluation.rates import exact_rate, measure_decision


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (3, 40), (199, 200)])
def test_exact_rate__is_scipys(hits: int, count: int) -> None:
    rate = exact_rate(hits, count)
    expected = binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert rate.value == hits / count
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high))
    assert json.loads(json.dumps(rate.to_json())) == {
        "value": hits / count,
        "low": rate.low,
        "high": rate.high,
        "hits": hits,
        "count": count,
    }


def test_exact_rate__leaves_a_fortieth_on_each_side() -> None:
    """The definition: at either end the count found, or one further out, has a probability of 2.5 %."""
    rate = exact_rate(4, 80)
    assert binom.sf(3, 80, rate.low) == pytest.approx(0.025)
    assert binom.cdf(4, 80, rate.high) == pytest.approx(0.025)


def test_exact_rate__covers_the_truth() -> None:
    draw = np.random.default_rng(0)
    rates = [exact_rate(int(hits), 50) for hits in draw.binomial(50, 0.1, 500)]
    assert np.mean([rate.low <= 0.1 <= rate.high for rate in rates]) >= 0.95


def sample(generator: str, label: int) -> Sample:
    return Sample(f"{generator}/{label}.png", Path("nowhere"), label, generator)


def test_measure_decision__counts_folder_by_folder() -> None:
    """Ten pictures by hand, at a boundary of 0; "reals" holds one class only."""
    table = [
        ("b", 0, -2.0), ("b", 0, 1.0), ("b", 1, 3.0), ("b", 1, -0.5),
        ("a", 0, -1.0), ("a", 1, 2.0), ("a", 1, 2.0),
        ("reals", 0, 0.25), ("reals", 0, -3.0), ("reals", 0, -3.0),
    ]  # fmt: skip
    samples = [sample(generator, label) for generator, label, _ in table]
    logits = np.array([logit for *_, logit in table], dtype=np.float32)
    report = measure_decision(Decision(temperature=2.0, uncertain=(0.4, 0.6)), samples, logits)
    assert report.overall.false_positive == exact_rate(2, 6)
    assert report.overall.true_positive == exact_rate(3, 4)
    assert [source.name for source in report.sources] == ["a", "b", "reals"]
    a, b, reals = report.sources
    assert (a.false_positive, a.true_positive) == (exact_rate(0, 1), exact_rate(2, 2))
    assert (b.false_positive, b.true_positive) == (exact_rate(1, 2), exact_rate(1, 2))
    assert (reals.false_positive, reals.true_positive) == (exact_rate(1, 3), None)
    # sigmoid(0.25 / 2) = 0.531 and sigmoid(-0.5 / 2) = 0.438; of the other eight only the real 1.0 is wrong.
    assert (report.uncertain_count, report.certain_accuracy) == (2, 7 / 8)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["measured_fpr"] == exact_rate(2, 6).to_json()
    assert content["sources"][2] == {"name": "reals", "fpr": exact_rate(1, 3).to_json(), "tpr": None}


def test_measure_decision__shows_what_the_temperature_did() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 6, 5000).astype(np.float32)
    labels = draw.random(5000) < 1 / (1 + np.exp(-logits / 3))
    samples = [sample("g", int(label)) for label in labels]
    report = measure_decision(Decision(temperature=3.0), samples, logits)
    assert report.ece_after < 0.02 < 0.1 < report.ece_before
    assert report.uncertain_count == 0
    everything = measure_decision(Decision(uncertain=(0.0, 1.0)), samples, np.clip(logits, -9, 9))
    assert (everything.uncertain_count, everything.certain_accuracy) == (5000, None)
