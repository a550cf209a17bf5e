"""How the pictures of a folder are read, and how many of them: the same for the gate and for the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.decode import MAX_PIXELS, MAX_SIDE, DecodeLimits
from runtime.errors import UsageError

SEED = 0


@dataclass(frozen=True)
class Reading:
    """What is asked of picture files.

    Attributes:
        limits: what is accepted, wherever a file is read.
        max_unreadable: share of the pictures that may be unreadable before they are bad input, in [0, 1).
        max_pictures: how many are taken at most; None takes all.

    Raises:
        UsageError: a number is out of its range.
    """

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    max_unreadable: float = 0.0
    max_pictures: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_unreadable < 1:
            raise UsageError(
                f"--max-unreadable: found {self.max_unreadable}, expected a share of at least 0 and below 1"
            )
        if self.max_pictures is not None and self.max_pictures < 1:
            raise UsageError(f"--max-pictures: found {self.max_pictures}, expected 1 or more")

    def require_data(self, *, has_data: bool) -> None:
        """Refuses what speaks of files where there are none.

        Raises:
            UsageError: something is asked for that only files can give.
        """
        if not has_data and self != Reading():
            raise UsageError(
                "--max-pictures, --max-unreadable, --allow-truncated, --max-pixels and --max-side are about "
                "picture files, of which the golden mosaics have none; add --data, or leave them out"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        return vars(self.limits) | {
            "max_unreadable": self.max_unreadable,
            "max_pictures": self.max_pictures,
        }


def decode_limits(max_pixels: int | None, max_side: int | None, *, allow_truncated: bool) -> DecodeLimits:
    """Returns the runtime's limits, its own where a number is None.

    Raises:
        UsageError: a number is below 1.
    """
    return DecodeLimits(
        MAX_PIXELS if max_pixels is None else max_pixels,
        MAX_SIDE if max_side is None else max_side,
        allow_truncated,
    )


@dataclass(frozen=True)
class Sample:
    """That a part of the pictures stands for all of them.

    Attributes:
        taken: how many were taken.
        of: how many there are.
        seed: which part it is.
    """

    taken: int
    of: int
    seed: int = SEED

    def text(self) -> str:
        """Returns it in words."""
        return f"{self.taken:,} of {self.of:,}, seed {self.seed}"

    def to_json(self) -> dict[str, int]:
        """Returns the form that parity.json stores."""
        return dict(vars(self))
