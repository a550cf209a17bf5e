"""The search for a smallest set of blocks, on rules instead of graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.parity.bisect.minimal_set import Blocks, OutOfEvaluationsError, Search

COUNT = 12


@dataclass(frozen=True)
class Said:
    passed: bool


def search(rule: Callable[[set[int]], bool], *, most: int = 10_000) -> tuple[Search, list[Blocks]]:
    asked: list[Blocks] = []

    def evaluate(blocks: Blocks) -> Said:
        asked.append(blocks)
        return Said(rule(set(blocks)))

    return Search(evaluate, most), asked


def found(rule: Callable[[set[int]], bool], order: list[int]) -> tuple[Blocks, Search, list[Blocks]]:
    one, asked = search(rule)
    assert one.passes(range(len(order)))
    return one.minimal(order), one, asked


@given(
    needed=st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT),
    order=st.permutations(range(COUNT)),
)
def test_search__finds_exactly_what_is_needed(needed: set[int], order: list[int]) -> None:
    blocks, one, asked = found(lambda kept: needed <= kept, order)
    assert set(blocks) == needed
    assert len(set(asked)) == len(asked)  # nothing is judged twice
    removals = one.removals(blocks)
    assert list(removals) == sorted(needed)
    assert all(said is not None and not said.passed for said in removals.values())


@given(data=st.data(), order=st.permutations(range(COUNT)))
def test_search__is_1_minimal_for_any_rule(data: st.DataObject, order: list[int]) -> None:
    """Even where more FP32 makes it worse, each set with one block less was judged and fails."""
    known: dict[frozenset[int], bool] = {frozenset(range(COUNT)): True, frozenset(): False}

    def rule(kept: set[int]) -> bool:
        key = frozenset(kept)
        if key not in known:
            known[key] = data.draw(st.booleans())
        return known[key]

    blocks, one, _asked = found(rule, list(order))
    assert rule(set(blocks))
    assert blocks
    for said in one.removals(blocks).values():
        assert said is not None
        assert not said.passed


def test_search__begins_with_the_most_suspicious() -> None:
    blocks, _one, asked = found(lambda kept: 7 in kept, [7, *(k for k in range(COUNT) if k != 7)])
    assert blocks == (7,)
    assert asked[1:] == [(7,), ()]


def test_search__stops_when_it_has_spent_what_it_may() -> None:
    one, asked = search(lambda kept: {2, 3} <= kept, most=5)
    assert one.passes(range(COUNT))
    with pytest.raises(OutOfEvaluationsError):
        one.minimal(list(range(COUNT)))
    assert len(asked) == 5
    assert one.best == (2, 3)
    assert set(one.removals((2, 3)).values()) == {None}  # which nobody has tried to make smaller
