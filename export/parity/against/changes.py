"""What two bundles' logits on the same pictures come to as verdicts, each under its own rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.against.truth import Truth, truth_of
from export.parity.pictures.data_set import Picture, labels_of
from export.parity.statistics.binomial import sign_test, upper_bound
from export.parity.statistics.measures import Spread
from runtime.decision import Decision
from runtime.names import utf8_name
from runtime.spec import CLASSES

REAL, GENERATED = CLASSES


@dataclass(frozen=True)
class Verdicts:
    """One bundle's answers.

    Attributes:
        logits: raw, float64 ``[N]``; NaN where there is no verdict.
        decision: the bundle's own rule.
    """

    logits: NDArray[np.float64]
    decision: Decision

    def has(self) -> NDArray[np.bool_]:
        """Returns which pictures have a verdict, bool ``[N]``."""
        return np.isfinite(self.logits)

    def generated(self) -> NDArray[np.bool_]:
        """Returns which pictures are called generated, bool ``[N]``; False where there is no verdict."""
        found = np.zeros(len(self.logits), dtype=bool)
        some = self.has()
        found[some] = self.decision.is_generated(self.logits[some])
        return found

    def said(self, place: int) -> Said | None:
        """Returns one verdict, None where there is none."""
        logit = float(self.logits[place])
        if not np.isfinite(logit):
            return None
        verdict = self.decision.judge(logit)
        return Said(verdict.label, verdict.probability, logit)


@dataclass(frozen=True)
class Said:
    """One verdict of one bundle; ``logit`` is raw."""

    label: str
    probability: float
    logit: float

    def __str__(self) -> str:
        return f"{self.label}, {self.probability:.4f} (logit {self.logit:.4f})"


@dataclass(frozen=True)
class Change:
    """A picture on which the verdict is another one; None stands for none at all.

    Attributes:
        place: of the picture.
        item: its name.
        old: what the old bundle says.
        new: what the new one says.
        truth: 0 real, 1 generated, -1 unknown.
    """

    place: int
    item: str
    old: Said | None
    new: Said | None
    truth: int

    def line(self) -> str:
        """Returns the change as text, but for the picture's name."""
        known = "" if self.truth < 0 else f"; it is {CLASSES[self.truth]}"
        return f"{self.old or 'no verdict'} -> {self.new or 'no verdict'}{known}"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "item": utf8_name(self.item),
            "old": None if self.old is None else dict(vars(self.old)),
            "new": None if self.new is None else dict(vars(self.new)),
            "truth": None if self.truth < 0 else CLASSES[self.truth],
        }


@dataclass(frozen=True)
class Changes:
    """Old against new, on all pictures or on one generator's.

    Attributes:
        count: pictures on which either has a verdict.
        to_generated: real before, generated now.
        to_real: generated before, real now.
        lost: a verdict before, none now.
        gained: none before, a verdict now.
        bound: one-sided 95 % upper bound of the rate of changed verdicts.
        chance: that a split into ``to_generated`` and ``to_real`` is at least so uneven by chance.
        logit: |difference of raw logits|.
        probability: |difference of probabilities|, each after its own temperature.
        truth: where labels are known; None where none is.
    """

    count: int
    to_generated: int
    to_real: int
    lost: int
    gained: int
    bound: float
    chance: float
    logit: Spread
    probability: Spread
    truth: Truth | None

    @property
    def changed(self) -> int:
        """Verdicts that are other ones now; no verdict at all is another one too."""
        return self.to_generated + self.to_real + self.lost + self.gained

    def split(self) -> str:
        """Returns which way the verdicts changed."""
        text = f"{self.to_generated} {REAL} -> {GENERATED}, {self.to_real} {GENERATED} -> {REAL}"
        if self.lost or self.gained:
            text += f", {self.lost} to no verdict, {self.gained} from none"
        return text

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return {
            "count": self.count,
            "changed": self.changed,
            "real_to_generated": self.to_generated,
            "generated_to_real": self.to_real,
            "lost": self.lost,
            "gained": self.gained,
            "changed_bound_95": self.bound,
            "sign_test_p": self.chance,
            "abs_logit": _spread_json(self.logit),
            "abs_probability": _spread_json(self.probability),
            "truth": None if self.truth is None else self.truth.to_json(),
        }


def changes_of(pictures: Sequence[Picture], old: Verdicts, new: Verdicts) -> Changes:
    """Returns how the verdicts on all pictures changed.

    Args:
        pictures: N of them.
        old: answers of the old bundle.
        new: answers of the new one.
    """
    return _changes(np.arange(len(pictures)), labels_of(list(pictures)), old, new)


def changes_by_generator(pictures: Sequence[Picture], old: Verdicts, new: Verdicts) -> dict[str, Changes]:
    """Returns the same for each generator, by name."""
    names = np.array([picture.generator for picture in pictures], dtype=object)
    labels = labels_of(list(pictures))
    return {
        str(name): _changes(np.flatnonzero(names == name), labels, old, new) for name in sorted(set(names))
    }


def changed_pictures(pictures: Sequence[Picture], old: Verdicts, new: Verdicts) -> list[Change]:
    """Returns every picture with another verdict, largest change of probability first."""
    differs = (old.has() != new.has()) | (old.generated() != new.generated())
    found = [
        Change(place, pictures[place].name, old.said(place), new.said(place), pictures[place].label)
        for place in np.flatnonzero(differs).tolist()
    ]
    return sorted(found, key=_size, reverse=True)


def _size(change: Change) -> float:
    if change.old is None or change.new is None:
        return 1.0
    return abs(change.old.probability - change.new.probability)


def _changes(places: NDArray[np.int64], labels: NDArray[np.int64], old: Verdicts, new: Verdicts) -> Changes:
    before, after = _part(old, places), _part(new, places)
    has_old, has_new = before.has(), after.has()
    both = has_old & has_new
    was, now = before.generated()[both], after.generated()[both]
    to_generated, to_real = int((~was & now).sum()), int((was & ~now).sum())
    lost, gained = int((has_old & ~has_new).sum()), int((~has_old & has_new).sum())
    count = int((has_old | has_new).sum())
    known = labels[places][both] >= 0
    return Changes(
        count=count,
        to_generated=to_generated,
        to_real=to_real,
        lost=lost,
        gained=gained,
        bound=upper_bound(to_generated + to_real + lost + gained, count),
        chance=sign_test(to_generated, to_real),
        logit=Spread.of(np.abs(before.logits[both] - after.logits[both])),
        probability=Spread.of(np.abs(_probability(before, both) - _probability(after, both))),
        truth=truth_of(
            labels[places][both][known], was[known], now[known],
            (before.logits[both][known], after.logits[both][known]),
        )
        if known.any()
        else None,
    )  # fmt: skip


def _part(verdicts: Verdicts, places: NDArray[np.int64]) -> Verdicts:
    return Verdicts(verdicts.logits[places], verdicts.decision)


def _probability(verdicts: Verdicts, some: NDArray[np.bool_]) -> NDArray[np.float64]:
    judge = verdicts.decision.judge
    return np.array([judge(float(logit)).probability for logit in verdicts.logits[some]], dtype=np.float64)


def _spread_json(spread: Spread) -> dict[str, float | None]:
    return {"max": spread.largest, "mean": spread.mean, "median": spread.p50, "p99": spread.p99}
