"""How many verdicts may change: a number of pictures or a share of them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from runtime.errors import UsageError


@dataclass(frozen=True)
class AllowedChanges:
    """What ``--max-changed`` says.

    Attributes:
        count: so many verdicts; None where a share is given.
        share: of the verdicts, in 0..1; None where a number is given.
    """

    count: int | None = 0
    share: float | None = None

    @classmethod
    def parsed(cls, text: str) -> AllowedChanges:
        """Reads ``3`` (verdicts), ``0.01`` or ``1%`` (of the verdicts).

        Raises:
            UsageError: none of these.
        """
        word = text.strip()
        try:
            if word.isascii() and word.isdigit():
                return cls(int(word))
            # As decimals: 0.7 / 100 is below 0.007 in binary, and 7 of 1,000 would be too many.
            share = float(Decimal(word[:-1]) / 100 if word.endswith("%") else Decimal(word))
        except (ArithmeticError, ValueError):  # the latter of sNaN, and of thousands of digits
            share = -1.0
        if not 0 <= share <= 1:
            raise UsageError(
                f"--max-changed: found {text!r}, expected a number of verdicts such as 3, or a share such as "
                "0.01 or 1%"
            )
        return cls(None, share)

    def allows(self, changed: int, count: int) -> bool:
        """Tells whether so many changed verdicts of ``count`` are within the limit."""
        if self.count is not None:
            return changed <= self.count
        return changed / max(count, 1) <= (self.share or 0.0)

    def __str__(self) -> str:
        return f"{self.count}" if self.count is not None else f"{100 * (self.share or 0.0):g} % of them"
