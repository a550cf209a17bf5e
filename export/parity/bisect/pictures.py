"""The pictures that blocks are compared and sets are judged on: few enough to be run many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.parity.outcome import GateReport
from export.parity.pictures.data_set import Picture
from export.parity.pictures.feeding import FileFeed
from export.parity.pictures.reading import Reading
from runtime.errors import DataError
from runtime.spec import Preprocessing

DEFAULT_COUNT = 128  # 19 MB of mosaics
MOST_PICTURES = 1024


@dataclass(frozen=True)
class Chosen:
    """Pictures with their mosaics, those first on which the gate saw the largest differences.

    Attributes:
        pictures: N of them.
        mosaics: uint8 ``[N, 224, 224, 3]``.
        total: how many the gate looked at.
    """

    pictures: tuple[Picture, ...]
    mosaics: NDArray[np.uint8]
    total: int

    @property
    def is_all(self) -> bool:
        """Whether no picture of the gate was left out."""
        return len(self.pictures) == self.total

    def line(self) -> str:
        """Returns what was chosen, for a person."""
        count = len(self.pictures)
        if self.is_all:
            return f"looked at part by part: all {count} pictures"
        return (
            f"looked at part by part: {count} of {self.total} pictures, half of them those that differ most "
            "(--bisect-pictures takes more)"
        )


def chosen_pictures(report: GateReport, preprocessing: Preprocessing, count: int) -> Chosen:
    """Returns the pictures of a gate that are looked at part by part.

    All where there are at most ``count``; else half are those with the largest differences at any hop, so
    that what failed the gate is among them, and half are spread over the rest.

    Args:
        report: of the gate.
        preprocessing: that the gate read its files with.
        count: at most so many.

    Raises:
        DataError: a picture that the gate read can no longer be read.
    """
    pictures = report.waterfall.pictures
    order = np.argsort(-_worst(report), kind="stable")
    taken = order
    if len(pictures) > count:
        first, rest = order[: (count + 1) // 2], np.sort(order[(count + 1) // 2 :])
        spread = np.linspace(0, len(rest) - 1, count - len(first)).astype(np.int64)
        taken = np.concatenate([first, rest[spread]])
    some = [pictures[k] for k in taken.tolist()]
    mosaics = (
        report.golden[taken] if report.golden is not None else _read(some, preprocessing, report.reading)
    )
    return Chosen(tuple(some), mosaics, len(pictures))


def _worst(report: GateReport) -> NDArray[np.float64]:
    """Returns the largest |difference of logits| of each picture between any form and the first, ``[N]``."""
    logits = [values.astype(np.float64) for values in report.waterfall.logits.values()]
    worst = np.zeros(len(report.waterfall.pictures))
    for values in logits[1:]:
        with np.errstate(invalid="ignore"):
            difference = np.abs(values - logits[0])
        worst = np.maximum(worst, np.where(np.isfinite(difference), difference, np.inf))
    return worst


def _read(pictures: Sequence[Picture], preprocessing: Preprocessing, reading: Reading) -> NDArray[np.uint8]:
    feed = FileFeed(list(pictures), preprocessing, reading)
    mosaics = [batch.mosaics for batch in feed.batches(16)]
    if feed.unreadable:
        name, reason = feed.unreadable[0]
        raise DataError(f"{name}: the gate could read it and now it cannot be read ({reason}); run again")
    return np.concatenate(mosaics)
