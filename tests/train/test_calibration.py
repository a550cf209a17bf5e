"""The calibrated rule keeps its promise on false positives, and counts what the runtime will say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.decision import Decision
from runtime.errors import DataError, SpecError, UsageError
from train.evaluation.calibration import fit_decision, uncertain_band


def judged(decision: Decision, logits: np.ndarray) -> list[bool]:
    return [decision.judge(float(logit)).label == "generated" for logit in logits.ravel()]


@given(
    st.floats(1e-6, 1 - 1e-6),
    st.floats(0.01, 50),
    st.lists(st.integers(-40, 40), min_size=1, max_size=30),
)
def test_is_generated__agrees_with_judge_on_the_boundary(
    threshold: float, temperature: float, steps: list[int]
) -> None:
    decision = Decision(threshold, temperature)
    at = decision.boundary_logit
    # Within a few units in the last place of the boundary, where only the same arithmetic agrees.
    logits = np.array([at + step * math.ulp(at) for step in steps])
    assert decision.is_generated(logits).tolist() == judged(decision, logits)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), st.floats(0.001, 0.999))
def test_is_generated__agrees_with_judge_on_float32(values: list[float], threshold: float) -> None:
    logits = np.array(values, dtype=np.float32)
    logits[0] = np.float32(Decision(threshold).boundary_logit)
    assert Decision(threshold).is_generated(logits).tolist() == judged(Decision(threshold), logits)


def test_is_generated__keeps_the_shape_and_refuses_what_judge_refuses() -> None:
    generated = Decision().is_generated([[1.0, -1.0, 0.0], [-800.0, 800.0, -0.0]])
    assert generated.dtype == np.bool_
    assert generated.tolist() == [[True, False, True], [False, True, True]]
    assert Decision().is_generated(3.0).shape == ()
    assert Decision().is_generated([]).shape == (0,)
    for wrong in (math.nan, math.inf):
        with pytest.raises(SpecError, match="finite"):
            Decision().is_generated([0.0, wrong])


def test_is_generated__agrees_with_judge_where_the_two_exponentials_differ() -> None:
    """A threshold that is exactly a picture's probability: the last digit of exp decides."""
    logits = np.random.default_rng(0).normal(0, 4, 20_000)
    for logit in logits[:2000]:
        decision = Decision(threshold=Decision().judge(float(logit)).probability)
        assert decision.is_generated(logit)
        assert not Decision(math.nextafter(decision.threshold, 1)).is_generated(logit)
    decision = Decision(0.3, temperature=1e-3)  # the largest logits divided by it are infinite
    assert decision.is_generated(logits * 1e307).tolist() == judged(decision, logits * 1e307)


def fitted(real: np.ndarray, fake: np.ndarray, max_fpr: float) -> Decision:
    labels = np.r_[np.zeros(len(real), int), np.ones(len(fake), int)]
    return fit_decision(labels, np.r_[real, fake].astype(np.float32), max_fpr=max_fpr)


def false_positives(decision: Decision, real: np.ndarray) -> int:
    return sum(judged(decision, real.astype(np.float32)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("max_fpr", [0.01, 0.05, 0.29])
def test_fit_decision__allows_exactly_the_stated_share(seed: int, max_fpr: float) -> None:
    draw = np.random.default_rng(seed)
    real, fake = draw.normal(-2, 1.5, 100), draw.normal(2, 1.5, 100)
    assert false_positives(fitted(real, fake, max_fpr), real) == round(100 * max_fpr)


LOGITS = st.lists(
    st.one_of(st.integers(-40_000, 40_000).map(lambda n: n / 1000), st.sampled_from([-1.0, 0.5, 0.7])),
    min_size=20,
    max_size=60,
)


@given(LOGITS, LOGITS, st.floats(0.05, 0.99))
def test_fit_decision__never_exceeds_the_rate(real: list[float], fake: list[float], max_fpr: float) -> None:
    decision = fitted(np.array(real), np.array(fake), max_fpr)
    assert false_positives(decision, np.array(real)) <= max_fpr * len(real) + 1e-9


def test_fit_decision__leaves_the_boundary_in_the_middle_of_the_gap() -> None:
    real, fake = np.array([-3.0, -2, -1, 1]), np.array([2.0, 3, 4])
    decision = fitted(real, fake, 0.25)
    assert decision.boundary_logit == pytest.approx(0.0, abs=1e-9)  # between -1 and 1
    decision = fitted(real, np.array([-0.5, 3, 4]), 0.25)
    assert decision.boundary_logit == pytest.approx(-0.75, abs=1e-9)  # a generated picture is nearer


def test_fit_decision__calls_ties_real_together() -> None:
    real = np.r_[np.full(90, -3.0), np.full(10, 0.7)]
    decision = fitted(real, np.linspace(0, 4, 100), 0.05)
    assert false_positives(decision, real) == 0
    assert false_positives(fitted(real, np.full(5, -3.0), 0.05), real) == 0  # nothing lies above


@pytest.mark.parametrize("sign", [1, -1], ids=["high", "low"])
def test_fit_decision__keeps_the_threshold_off_0_and_1(sign: int) -> None:
    """All logits far on one side of 0: at a small temperature the threshold would round to 0 or 1."""
    real, fake = np.linspace(20, 40, 100), np.linspace(30, 60, 100)
    if sign < 0:
        real, fake = -fake, -real
    decision = fitted(real, fake, 0.05)
    assert false_positives(decision, real) == 5
    assert decision.is_generated(fake).any()


def test_fit_decision__fits_the_temperature_of_the_likelihood() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 6, 4000)
    labels = (draw.random(4000) < 1 / (1 + np.exp(-logits / 2.5))).astype(int)
    assert fit_decision(labels, logits, max_fpr=0.1).temperature == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize(
    ("real", "fake", "max_fpr", "error", "message"),
    [
        ([0.0] * 19, [1.0], 0.05, DataError, "19 real pictures cannot show .* at least 20 or"),
        ([0.0] * 20, [], 0.05, DataError, "one class only"),
        ([0.0, math.nan], [1.0], 0.5, DataError, "not finite"),
        ([0.0] * 20, [1.0], math.nan, UsageError, "found nan"),
        ([0.0] * 20, [1.0], 1.0, UsageError, r"found 1\.0"),
        ([900.0] * 20, [1000.0], 0.05, DataError, "away from 0"),
    ],
)
def test_fit_decision__refuses(
    real: list[float], fake: list[float], max_fpr: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fitted(np.array(real), np.array(fake), max_fpr)


def test_fit_decision__refuses_what_no_threshold_separates() -> None:
    """Neighbours in float32 can be told apart at a logit of 300, neighbours in float64 at 400 cannot."""
    real = np.r_[np.full(19, 300.0), np.nextafter(np.float32(300), np.float32(301))]
    decision = fitted(real, np.array([300.5]), 0.05)
    assert false_positives(decision, real) == 1
    close = np.r_[np.full(19, 400.0), math.nextafter(400.0, 401)]
    with pytest.raises(DataError, match="no threshold keeps"):
        fit_decision(np.r_[np.zeros(20, int), 1], np.r_[close, 401.0], max_fpr=0.05)


def in_band(band: tuple[float, float], decision: Decision, logits: np.ndarray) -> list[bool]:
    with_band = Decision(decision.threshold, decision.temperature, band)
    return [with_band.judge(float(logit)).uncertain for logit in logits]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.29, 0.999])
def test_uncertain_band__holds_the_stated_share_of_the_nearest(share: float) -> None:
    decision = Decision(0.7, 1.8)
    logits = np.random.default_rng(2).normal(0.5, 3, 100).astype(np.float32)
    caught = np.array(in_band(uncertain_band(decision, logits, share=share), decision, logits))
    assert caught.sum() == min(round(100 * share), 99)
    distance = np.abs(logits - decision.boundary_logit)
    assert distance[caught].max() < distance[~caught].min()


def test_uncertain_band__is_that_of_the_hand() -> None:
    logits = np.array([-3.0, -1.0, 0.5, 2.0])  # the band reaches half way from 0.5 to 1
    low, high = uncertain_band(Decision(), logits, share=0.25)
    assert (low, high) == pytest.approx((1 / (1 + math.exp(0.75)), 1 / (1 + math.exp(-0.75))))


def test_uncertain_band__takes_ties_together() -> None:
    logits = np.array([-1.0, 1.0, 3.0, -4.0, 5.0])
    decision = Decision()
    band = uncertain_band(decision, logits, share=0.4)
    assert in_band(band, decision, logits) == [True, True, False, False, False]
    with pytest.raises(DataError, match=r"5 pictures cannot show an uncertain share of 0\.2"):
        uncertain_band(decision, logits, share=0.2)  # one of the two nearest alone


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan, -0.1])
def test_uncertain_band__refuses_shares_out_of_range(share: float) -> None:
    with pytest.raises(UsageError, match="uncertain share: found"):
        uncertain_band(Decision(), np.array([1.0, 2.0]), share=share)
