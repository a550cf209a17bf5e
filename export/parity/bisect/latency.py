"""Two forms of a model timed side by side, so that whatever else the machine does falls on both."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.forms.form import Runnable

ROUNDS = 30
_WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """One engine before and after a repair.

    Attributes:
        before_ms: median time of a batch before, None where it was not run.
        after_ms: the same after.
        batch: mosaics a run.
        where: what ran, such as "tensorrt:sm_89".
        reason: why it was not run; "" where it was.
    """

    before_ms: float | None
    after_ms: float | None
    batch: int
    where: str
    reason: str = ""

    def line(self) -> str:
        """Returns it in words."""
        if self.before_ms is None or self.after_ms is None:
            return f"latency not run ({self.reason})"
        return (
            f"latency on {self.where}, batch {self.batch}, side by side: {self.before_ms:.3f} -> "
            f"{self.after_ms:.3f} ms ({self.after_ms / self.before_ms:.2f} times)"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return dict(vars(self))


def not_run(reason: str) -> Latency:
    """Returns a latency that nobody knows."""
    return Latency(None, None, 0, "", reason)


def side_by_side(
    before: Runnable, after: Runnable, images: NDArray[np.uint8], *, rounds: int = ROUNDS
) -> Latency:
    """Returns the median time of one batch of each, run in turns.

    Args:
        before: the form before.
        after: the form after.
        images: one batch, uint8 ``[n, 224, 224, 3]``.
        rounds: how often each is run, after a warm-up.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARM_UP + rounds):
        # Who goes first changes, or the second would always find a warmer cache.
        pairs = [(before, times[0]), (after, times[1])]
        for form, spent in pairs if turn % 2 == 0 else reversed(pairs):
            started = time.perf_counter()
            form.run(images)
            if turn >= _WARM_UP:
                spent.append(1e3 * (time.perf_counter() - started))
    return Latency(float(np.median(times[0])), float(np.median(times[1])), len(images), after.name)
