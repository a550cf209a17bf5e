"""What a decision does on the pictures that it was fitted on, with exact intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decision import Decision
from runtime.names import utf8_name
from train.data.layout import Sample
from train.metrics import expected_calibration_error, probabilities_from_logits

LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """A share of counted pictures and how sure it is.

    Attributes:
        hits: pictures that were called generated.
        count: pictures in all, at least one.
        low: lower end of the exact (Clopper-Pearson) 95 % interval.
        high: its upper end.
    """

    hits: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share, hits / count."""
        return self.hits / self.count

    def to_json(self) -> dict[str, Any]:
        """Returns value, low, high, hits and count."""
        return {"value": self.value} | {key: getattr(self, key) for key in ("low", "high", "hits", "count")}


@dataclass(frozen=True)
class SourceRates:
    """The rates of one folder of pictures; a folder may hold one class only, whose rate is then the only one.

    Attributes:
        name: the folder, or "" for all of them together.
        false_positive: real pictures called generated; None without real pictures.
        true_positive: generated pictures called generated; None without generated pictures.
    """

    name: str
    false_positive: Rate | None
    true_positive: Rate | None

    def to_json(self) -> dict[str, Any]:
        """Returns name, fpr and tpr; a name that is not UTF-8 carries U+FFFD."""
        return {
            "name": utf8_name(self.name),
            "fpr": self.false_positive and self.false_positive.to_json(),
            "tpr": self.true_positive and self.true_positive.to_json(),
        }


@dataclass(frozen=True)
class CalibrationReport:
    """What the fitted decision does on its own pictures.

    The intervals are those of a fixed threshold. This one was chosen on the same pictures, which the
    intervals do not know: for a rate to quote, evaluate on pictures that took no part.

    Attributes:
        overall: all pictures together.
        sources: one for each folder, sorted by name.
        ece_before: expected calibration error at a temperature of 1.
        ece_after: at the fitted temperature.
        uncertain_count: pictures inside the uncertain band.
        certain_accuracy: accuracy on the others; None when there are none.
    """

    overall: SourceRates
    sources: list[SourceRates]
    ece_before: float
    ece_after: float
    uncertain_count: int
    certain_accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns what the run's record keeps of the calibration."""
        overall = self.overall.to_json()
        return {
            "measured_fpr": overall["fpr"],
            "measured_tpr": overall["tpr"],
            "ece_before": self.ece_before,
            "ece_after": self.ece_after,
            "uncertain_pictures": self.uncertain_count,
            "certain_accuracy": self.certain_accuracy,
            "sources": [source.to_json() for source in self.sources],
        }


def exact_rate(hits: int, count: int) -> Rate:
    """Returns hits / count with its Clopper-Pearson interval.

    Source: Clopper and Pearson, Biometrika 26 (1934). The ends are quantiles of beta distributions:
    Beta(hits, count - hits + 1) at 2.5 % and Beta(hits + 1, count - hits) at 97.5 %.

    Args:
        hits: 0 to ``count``.
        count: at least 1.
    """
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return Rate(hits, count, low, high)


def measure_decision(
    decision: Decision, samples: Sequence[Sample], logits: NDArray[np.float32]
) -> CalibrationReport:
    """Returns what a decision does on labelled pictures, in all and folder by folder.

    Args:
        decision: threshold, temperature and uncertain band.
        samples: N pictures; of both classes, though not necessarily in each folder.
        logits: raw, ``[N]``.

    Raises:
        SpecError: a logit is not finite.
    """
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    called = decision.is_generated(logits)
    folders = np.array([sample.generator for sample in samples], dtype=object)
    probabilities = probabilities_from_logits(logits, decision.temperature)
    low, high = decision.uncertain
    is_certain = (probabilities < low) | (probabilities >= high)
    right = called == (labels == 1)
    return CalibrationReport(
        overall=_rates("", labels, called),
        sources=[
            _rates(name, labels[folders == name], called[folders == name]) for name in sorted(set(folders))
        ],
        ece_before=expected_calibration_error(labels, probabilities_from_logits(logits, 1.0)),
        ece_after=expected_calibration_error(labels, probabilities),
        uncertain_count=int((~is_certain).sum()),
        certain_accuracy=float(right[is_certain].mean()) if is_certain.any() else None,
    )


def _rates(name: str, labels: NDArray[np.int64], called: NDArray[np.bool_]) -> SourceRates:
    rates = []
    for label in (0, 1):
        chosen = called[labels == label]
        rates.append(exact_rate(int(chosen.sum()), chosen.size) if chosen.size else None)
    return SourceRates(name, *rates)
