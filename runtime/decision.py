"""From a raw logit to a verdict: temperature, threshold, margin and the uncertain band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from runtime.errors import SpecError
from runtime.spec import CLASSES


@dataclass(frozen=True)
class Verdict:
    """What one logit means under a decision rule.

    Attributes:
        label: "real" or "generated".
        probability: that the picture is AI-generated, after the temperature, in 0..1.
        margin: distance of the logit from the decision boundary, in logits; negative means real.
        uncertain: whether the probability lies inside the band that a person should look at.
    """

    label: str
    probability: float
    margin: float
    uncertain: bool


@dataclass(frozen=True)
class Decision:
    """The rule that turns a logit into a verdict.

    probability = sigmoid(logit / temperature); generated iff probability >= threshold;
    margin = logit - temperature * log(threshold / (1 - threshold)); uncertain iff lo <= probability < hi.

    Attributes:
        threshold: probability in (0, 1).
        temperature: positive.
        uncertain: half-open band of probabilities; empty when both ends are equal.
    """

    threshold: float = 0.5
    temperature: float = 1.0
    uncertain: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        low, high = self.uncertain
        if not 0.0 < self.threshold < 1.0:
            raise SpecError(f"decision.threshold: found {self.threshold}, expected a probability in (0, 1)")
        if not 0.0 < self.temperature < math.inf:
            raise SpecError(f"decision.temperature: found {self.temperature}, expected a number above 0")
        if not 0.0 <= low <= high <= 1.0:
            raise SpecError(f"decision.uncertain: found [{low}, {high}], expected 0 <= lo <= hi <= 1")

    def judge(self, logit: float) -> Verdict:
        """Returns the verdict on one raw logit.

        Raises:
            SpecError: the logit is not finite, so no verdict would mean anything.
        """
        if not math.isfinite(logit):
            raise SpecError(f"logit: found {logit}, expected a finite number; the engine has overflowed")
        scaled = logit / self.temperature
        # Both branches keep exp's argument at or below 0, so that no logit overflows.
        if scaled >= 0:
            probability = 1.0 / (1.0 + math.exp(-scaled))
        else:
            probability = math.exp(scaled) / (1.0 + math.exp(scaled))
        low, high = self.uncertain
        return Verdict(
            label=CLASSES[int(probability >= self.threshold)],
            probability=probability,
            margin=logit - self.boundary_logit,
            uncertain=low <= probability < high,
        )

    @property
    def boundary_logit(self) -> float:
        """The raw logit at which the label changes."""
        return self.temperature * math.log(self.threshold / (1.0 - self.threshold))

    def to_json(self) -> dict[str, Any]:
        """Returns the form that checkpoints and manifests store."""
        return {
            "threshold": self.threshold,
            "temperature": self.temperature,
            "uncertain": list(self.uncertain),
        }

    @classmethod
    def from_json(cls, value: object) -> Decision:
        """Reads what ``to_json`` wrote.

        Raises:
            SpecError: a key is missing or unknown, or a number is out of range.
        """
        if not isinstance(value, dict) or set(value) != {"threshold", "temperature", "uncertain"}:
            raise SpecError("decision: expected an object with threshold, temperature and uncertain")
        band = value["uncertain"]
        if not isinstance(band, list) or len(band) != 2:
            raise SpecError(f"decision.uncertain: found {band!r}, expected [lo, hi]")
        numbers = [value["threshold"], value["temperature"], *band]
        if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
            raise SpecError(f"decision: found {numbers}, expected numbers")
        return cls(float(numbers[0]), float(numbers[1]), (float(numbers[2]), float(numbers[3])))
