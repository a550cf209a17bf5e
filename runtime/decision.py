"""From a raw logit to a verdict: temperature, threshold, margin and the uncertain band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import SpecError
from runtime.spec import CLASSES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


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
        if not 1e-3 <= self.temperature <= 1e3:
            raise SpecError(f"decision.temperature: found {self.temperature}, expected 0.001 to 1000")
        if not 0.0 <= low <= high <= 1.0:
            raise SpecError(f"decision.uncertain: found [{low}, {high}], expected 0 <= lo <= hi <= 1")

    def judge(self, logit: float) -> Verdict:
        """Returns the verdict on one raw logit.

        Raises:
            SpecError: the logit is not finite, so no verdict would mean anything.
        """
        if not math.isfinite(logit):
            raise SpecError(f"logit: found {logit}, expected a finite number; the engine has overflowed")
        logit = float(logit)  # a NumPy float32 would keep the arithmetic below in single precision
        probability = _sigmoid(logit / self.temperature)
        low, high = self.uncertain
        return Verdict(
            label=CLASSES[int(probability >= self.threshold)],
            probability=probability,
            margin=logit - self.boundary_logit,
            uncertain=low <= probability < high,
        )

    def is_generated(self, logits: ArrayLike) -> NDArray[np.bool_]:
        """Returns which raw logits ``judge`` calls generated, for a whole array at once.

        The rule is that of ``judge``, in float64: probability >= threshold.

        Args:
            logits: numbers of any shape and float type; each is taken as the float64 that it equals.

        Returns:
            bool, of the same shape.

        Raises:
            SpecError: a logit is not finite.
        """
        import numpy as np

        values = np.asarray(logits, dtype=np.float64)
        if not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)].flat[0]
            raise SpecError(f"logit: found {wrong}, expected finite numbers; the engine has overflowed")
        with np.errstate(over="ignore"):  # infinity saturates to 0 or 1 here as in ``judge``
            scaled = values / self.temperature
        small = np.exp(-np.abs(scaled))
        probability = np.where(scaled >= 0, 1.0, small) / (1.0 + small)
        generated = np.asarray(probability >= self.threshold)  # an array even of no dimensions
        # NumPy's exp and the C library's differ in the last digit, which decides on the threshold itself.
        close = np.abs(probability - self.threshold) <= 1e-12 * self.threshold + 1e-300
        generated[close] = [_sigmoid(float(value)) >= self.threshold for value in scaled[close]]
        return generated

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


def _sigmoid(scaled: float) -> float:
    # Both branches keep exp's argument at or below 0, so that no logit overflows.
    if scaled >= 0:
        return 1.0 / (1.0 + math.exp(-scaled))
    return math.exp(scaled) / (1.0 + math.exp(scaled))
