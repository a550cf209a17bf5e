"""Paired comparison of logits and embeddings: flips, ties, non-finite values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export.parity.statistics.compare import HopReport, Limits, compare_logits
from runtime.decision import Decision
from runtime.errors import SpecError


def compare(
    reference: list[float],
    logits: list[float],
    *,
    tolerance: float = 0.05,
    decision: Decision | None = None,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None,
) -> HopReport:
    return compare_logits(
        "hop",
        [f"p{k}" for k in range(len(reference))],
        np.float32(reference),
        np.float32(logits),
        decision=decision or Decision(),
        limits=Limits(tolerance, 0.999),
        embeddings=embeddings,
    )


def test_compare_logits__equal_passes() -> None:
    report = compare([1.0, -2.0], [1.0, -2.0])
    assert report.passed
    assert report.max_abs_logit == 0


def test_compare_logits__a_flip_within_the_tolerance_is_a_tie() -> None:
    report = compare([0.02, 3.0], [-0.02, 3.0])
    assert [flip.item for flip in report.flips] == ["p0"]
    assert report.flips[0].tie
    assert report.hard_flips == 0
    assert report.passed


def test_compare_logits__a_hard_flip_fails() -> None:
    report = compare([0.3, 3.0], [-0.3, 3.0], tolerance=0.2)
    assert report.hard_flips == 1
    assert not report.passed


def test_compare_logits__a_small_difference_is_over_a_smaller_limit() -> None:
    assert compare([1.0], [1.1], tolerance=0.2).passed
    assert not compare([1.0], [1.1], tolerance=0.05).passed


def test_compare_logits__the_decision_says_what_a_flip_is() -> None:
    assert compare([1.1], [0.9], tolerance=0.5).flips == ()
    at_one = Decision(threshold=float(1 / (1 + np.exp(-1.0))))
    assert len(compare([1.1], [0.9], tolerance=0.5, decision=at_one).flips) == 1


def test_compare_logits__embeddings_count() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert compare([1.0] * 3, [1.0] * 3, embeddings=(rows, rows)).passed
    assert not compare([1.0] * 3, [1.0] * 3, embeddings=(rows, -rows)).passed
    assert not compare([1.0] * 3, [1.0] * 3, embeddings=(rows, np.full_like(rows, np.nan))).passed
    with pytest.raises(SpecError, match="embeddings of shape"):
        compare([1.0] * 3, [1.0] * 3, embeddings=(rows, rows[:, :2]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["reference", "logits"])
def test_compare_logits__a_non_finite_logit_fails(bad: float, side: str) -> None:
    report = compare([1.0, bad], [1.0, 2.0]) if side == "reference" else compare([1.0, 2.0], [1.0, bad])
    assert not report.passed
    json.dumps(report.to_json(), allow_nan=False)


def test_compare_logits__refuses_nothing() -> None:
    with pytest.raises(SpecError):
        compare([], [])
