"""How many flips a population may hold, given those seen in a sample: the exact binomial bound.

Clopper and Pearson's upper limit, one-sided at 95 %: the largest rate p at which seeing k flips or fewer in n
pictures still has a chance of 5 %. Source: Clopper and Pearson, Biometrika 26 (1934). numpy only.
"""

from __future__ import annotations

import math

import numpy as np

CONFIDENCE = 0.95
# Halvings of [0, 1]: more than float64 can tell apart.
_HALVINGS = 100
_MOST_IMAGES = 10**9
_RATES = (0.01, 0.001, 0.0001)


def upper_bound(flips: int, images: int, confidence: float = CONFIDENCE) -> float:
    """Returns the one-sided Clopper-Pearson upper bound of the flip rate, in 0..1.

    Args:
        flips: pictures whose verdict changed.
        images: pictures that were compared; 0 says nothing, so the bound is 1.
        confidence: probability that the bound holds, in (0, 1).
    """
    if flips >= images:
        return 1.0
    chance = math.log(1.0 - confidence)
    if flips == 0:
        return -math.expm1(chance / images)
    low, high = flips / images, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _log_at_most(flips, images, middle) > chance:
            low = middle
        else:
            high = middle
    return high


def images_needed(bound: float, flips: int = 0, confidence: float = CONFIDENCE) -> int:
    """Returns the smallest number of pictures whose bound, with that many flips, is at most ``bound``.

    With no flips that is about 3 / bound.

    Args:
        bound: rate, in (0, 1].
        flips: how many are seen among them.
        confidence: as of ``upper_bound``.
    """
    if bound >= 1.0:
        return max(flips, 1)
    low, high = flips, max(2 * flips, 1)
    while upper_bound(flips, high, confidence) > bound:
        low, high = high, 2 * high
        if high > _MOST_IMAGES:
            return _MOST_IMAGES
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(flips, middle, confidence) > bound:
            low = middle
        else:
            high = middle
    return high


def images_for_rates(flips: int) -> dict[str, int]:
    """Returns how many pictures, with as many flips, would prove each of three rates, by its text."""
    return {f"{rate:g}": images_needed(rate, flips) for rate in _RATES}


def images_text(flips: int) -> str:
    """Returns the same for a person."""
    return ", ".join(f"{count:,} for {float(rate):.2%}" for rate, count in images_for_rates(flips).items())


def sign_test(one: int, other: int) -> float:
    """Returns how likely a split at least this uneven is if both ways were equally likely: two-sided, exact.

    Of pictures that were right before and wrong after, and the reverse, that is McNemar's exact test.
    Source: McNemar, Psychometrika 12 (1947).

    Args:
        one: changes one way.
        other: changes the other way; both 0 gives 1.
    """
    count = one + other
    return min(1.0, 2.0 * math.exp(_log_at_most(min(one, other), count, 0.5))) if count else 1.0


def _log_at_most(count: int, images: int, rate: float) -> float:
    """Returns log P(X <= count) of a binomial variable; logarithms, so that nothing underflows."""
    if rate >= 1.0:
        return -math.inf
    steps = np.arange(1, count + 1, dtype=np.float64)
    odds = math.log(rate) - math.log1p(-rate)
    rising = np.cumsum(np.log((images - steps + 1) / steps) + odds)
    terms = images * math.log1p(-rate) + np.concatenate([[0.0], rising])
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))
