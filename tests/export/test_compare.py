"""Paired comparison of logits: flips, ties, non-finite values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export.parity.compare import HopReport, compare_logits
from runtime.errors import SpecError


def compare(reference: list[float], logits: list[float], **limits: float) -> HopReport:
    settings = {"boundary": 0.0, "tolerance": 0.05} | limits
    names = [f"p{k}" for k in range(len(reference))]
    return compare_logits("hop", names, np.float32(reference), np.float32(logits), **settings)  # type: ignore[arg-type]


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


def test_compare_logits__a_flip_beyond_it_fails_even_if_the_difference_is_allowed() -> None:
    report = compare([0.3], [-0.3], tolerance=1.0)
    assert report.passed  # margin 0.3 is inside a tolerance of 1
    report = compare([0.3], [-0.3], tolerance=0.2)
    assert report.hard_flips == 1
    assert not report.passed


def test_compare_logits__the_boundary_decides() -> None:
    assert compare([1.1], [0.9], tolerance=0.5).flips == ()
    assert len(compare([1.1], [0.9], tolerance=0.5, boundary=1.0).flips) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_compare_logits__a_non_finite_logit_fails(bad: float) -> None:
    report = compare([1.0, 2.0], [1.0, bad])
    assert not report.passed
    json.dumps(report.to_json(), allow_nan=False)


def test_compare_logits__refuses_nothing() -> None:
    with pytest.raises(SpecError):
        compare([], [])
