"""How large a picture may be, and whether a part of one is enough; decided per call, from the header."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import ImageError, UsageError

MAX_PIXELS = 200_000_000
# The longest side that a JPEG can have.
MAX_SIDE = 65_535


@dataclass(frozen=True)
class DecodeLimits:
    """What is accepted.

    Attributes:
        max_pixels: width x height at most.
        max_side: width and height at most, each.
        allow_truncated: whether a JPEG, PNG, BMP or PNM that ends early is taken as far as it goes, the rest
            being black.

    Raises:
        UsageError: a limit below 1.
    """

    max_pixels: int = MAX_PIXELS
    max_side: int = MAX_SIDE
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        for flag, value in (("--max-pixels", self.max_pixels), ("--max-side", self.max_side)):
            if value < 1:
                raise UsageError(f"{flag}: found {value}, expected 1 or more")

    def check(self, size: tuple[int, int], name: str) -> None:
        """Raises ImageError if a picture of (width, height) is over a limit or empty."""
        width, height = size
        if width < 1 or height < 1:
            raise ImageError(f"{name}: found {width} x {height} pixels, expected at least one")
        if width * height > self.max_pixels:
            raise ImageError(
                f"{name}: found {width} x {height} pixels, expected at most {self.max_pixels} in all; "
                "raise the limit (--max-pixels) if the file is to be trusted"
            )
        if max(width, height) > self.max_side:
            raise ImageError(
                f"{name}: found {width} x {height} pixels, expected at most {self.max_side} on a side; "
                "raise the limit (--max-side) if the file is to be trusted"
            )
