"""K views: fixed permutations, the first of them the bundle's, and logits averaged."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.errors import UsageError
from runtime.patches.views import MAX_VIEWS, averaged_logits, view_permutations
from runtime.spec import PERMUTATION


def test_view_permutations__are_different_and_begin_with_the_literal_one() -> None:
    orders = view_permutations(MAX_VIEWS)
    assert orders[0] == PERMUTATION
    assert len(set(orders)) == MAX_VIEWS
    assert all(sorted(order) == list(range(49)) for order in orders)


def test_view_permutations__begin_with_the_one_given_and_share_the_rest() -> None:
    first = tuple(range(49))
    assert view_permutations(3, first) == (first, *view_permutations(3)[1:])
    assert view_permutations(2) == view_permutations(5)[:2]


def test_view_permutations__are_what_they_were_in_earlier_versions() -> None:
    # Verdicts with several views hang on these numbers: they may never change.
    assert view_permutations(2)[1][:10] == (19, 6, 9, 46, 4, 13, 44, 23, 45, 35)


@pytest.mark.parametrize("views", [0, -1, MAX_VIEWS + 1, True, 1.0, "2"], ids=repr)
def test_view_permutations__refuses_other_numbers(views: object) -> None:
    with pytest.raises(UsageError, match=f"expected 1 to {MAX_VIEWS}"):
        view_permutations(views)  # type: ignore[arg-type]


def test_averaged_logits__is_the_mean_in_float64_of_each_picture() -> None:
    logits = np.array([1.0, 2.0, 4.0, -8.0, 16777216.0, 1.0], np.float32)
    assert averaged_logits(logits, 2).tolist() == [1.5, -2.0, 8388608.5]
    single = np.array([0.1, -3.3], np.float32)
    assert averaged_logits(single, 1).tolist() == single.astype(np.float64).tolist()
