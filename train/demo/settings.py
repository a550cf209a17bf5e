"""What decides the bytes of a demo data set, in one frozen value. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from runtime.errors import UsageError

SCHEMA = 1
SEEN_FAMILIES = ("nearest", "transposed")
UNSEEN_FAMILY = "pixelshuffle"
FAMILIES = (*SEEN_FAMILIES, UNSEEN_FAMILY)

# Cut off on each side of every picture of both classes: what a generator does near its border is no
# trace of its up-sampling.
MARGIN = 8
SMALLEST_SIDE = 256
LARGEST_SIDE = 320
SIDE_STEP = 4


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and effort of the demo data; equal settings on one machine give equal bytes.

    Attributes:
        seed: decides crops, initial weights and fitting batches.
        train_per_class: pictures of each class for each family seen in training.
        val_per_class: the same for validation.
        test_per_class: the same for the test, for every family.
        fit_steps: optimiser steps of each generator.
        fit_batch: crops a step.
        fit_crop: side of those crops, pixels, a multiple of 4.
        width: channels of a generator at half resolution.
        code_channels: channels of its code at a quarter of the resolution.
    """

    seed: int = 0
    train_per_class: int = 160
    val_per_class: int = 40
    test_per_class: int = 72
    fit_steps: int = 600
    fit_batch: int = 16
    fit_crop: int = 64
    width: int = 32
    code_channels: int = 12

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"demo data: {name} is {value!r}; expected an integer of at least {least}")
        if self.fit_crop % SIDE_STEP or not 16 <= self.fit_crop <= SMALLEST_SIDE:
            raise UsageError(
                f"demo data: fit_crop is {self.fit_crop}; expected a multiple of {SIDE_STEP} "
                f"from 16 to {SMALLEST_SIDE}"
            )

    @classmethod
    def tiny(cls, seed: int = 0) -> DemoSettings:
        """A data set in seconds, for tests: the fakes are crude, so no score on it means anything."""
        return cls(
            seed=seed,
            train_per_class=8,
            val_per_class=4,
            test_per_class=6,
            fit_steps=8,
            fit_batch=4,
            fit_crop=32,
            width=8,
            code_channels=8,
        )

    def per_class(self, split: str) -> int:
        """Pictures of each class in one family's folder of ``split`` ("train", "val" or "test")."""
        return {"train": self.train_per_class, "val": self.val_per_class, "test": self.test_per_class}[split]

    def image_counts(self) -> dict[str, dict[str, int]]:
        """Pictures, both classes together, by split and family."""
        return {
            split: {family: 2 * self.per_class(split) for family in families_of(split)}
            for split in ("train", "val", "test")
        }

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values, the stamp that tells one data set from another."""
        return asdict(self)


def families_of(split: str) -> tuple[str, ...]:
    """The generator families in one split: the unseen one is in the test only."""
    return FAMILIES if split == "test" else SEEN_FAMILIES
