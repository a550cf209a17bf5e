"""The order of an epoch, its windows, and their shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import DataError
from train.data.order import epoch_windows, positive_weight, random_source, shares_of_window

LABELS = np.array([0] * 11 + [1] * 4)
# What seed 3, epoch 1 has always given; runs of earlier versions are resumed and reproduced by it.
ORDER = [[0, 8, 9, 1], [7, 5, 6, 4], [3, 2]]


def order_of(epoch: int, balance: str = "none", seed: int = 3, batch: int = 4) -> list[int]:
    windows = epoch_windows(LABELS, batch=batch, seed=seed, epoch=epoch, balance=balance)
    return np.concatenate(windows).tolist()


def test_epoch_windows__are_the_literal_ones() -> None:
    windows = epoch_windows([0, 1] * 5, batch=4, seed=3, epoch=1, balance="none")
    assert [window.tolist() for window in windows] == ORDER
    assert all(window.dtype == np.int64 for window in windows)
    # A key that is not UTF-8 has draws too.
    assert random_source(3, 1, "caf\udce9").random() != random_source(3, 1, "caf").random()


@pytest.mark.parametrize("balance", ["none", "pos-weight", "sampler"])
def test_epoch_windows__differ_by_epoch_and_seed_and_repeat(balance: str) -> None:
    assert order_of(0, balance) == order_of(0, balance)
    assert order_of(0, balance) == order_of(0, balance, batch=7)
    assert len({tuple(o) for o in (order_of(0, balance), order_of(1, balance), order_of(0, balance, 4))}) == 3
    assert order_of(-1, balance) == list(range(15))


def test_epoch_windows__balance_both_classes_by_repeating_the_smaller() -> None:
    windows = epoch_windows(LABELS, batch=4, seed=3, epoch=0, balance="sampler")
    assert [len(window) for window in windows] == [4, 4, 4, 4, 4, 2]
    assert all(LABELS[window].mean() == 0.5 for window in windows)
    order = np.concatenate(windows)
    assert len(order) == 22
    assert sorted(order[LABELS[order] == 0]) == list(range(11))
    fakes = order[LABELS[order] == 1]
    assert set(fakes[:4]) == set(fakes[4:8]) == {11, 12, 13, 14}
    assert len(set(fakes[8:])) == 3
    assert fakes[:4].tolist() != fakes[4:8].tolist()
    assert len(set(LABELS[order[::2]])) == 2  # neither class always comes first


def test_epoch_windows__refuse_to_balance_one_class() -> None:
    with pytest.raises(DataError, match="2 real and 0 generated"):
        epoch_windows([0, 0], batch=2, seed=0, epoch=0, balance="sampler")
    with pytest.raises(DataError, match="0 real and 2 generated"):
        positive_weight([1, 1])


def test_positive_weight__is_real_over_generated() -> None:
    assert positive_weight(LABELS) == 11 / 4


@given(size=st.integers(0, 70), ranks=st.integers(1, 5), steps=st.integers(1, 5))
def test_shares_of_window__are_even_and_complete(size: int, ranks: int, steps: int) -> None:
    window = np.arange(100, 100 + size)
    shares = shares_of_window(window, ranks=ranks, micro_batches=steps)
    assert len(shares) == ranks
    assert all(len(share) == steps for share in shares)
    flat = np.concatenate([shares[rank][step] for step in range(steps) for rank in range(ranks)])
    assert flat.tolist() == window.tolist()
    sizes = np.array([[len(part) for part in share] for share in shares])
    assert sizes.max() - sizes.min() <= 1
    assert flat.dtype == np.int64
