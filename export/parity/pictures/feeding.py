"""What goes through the chain, a batch at a time: mosaics made once and shared by every form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.parity.pictures.data_set import Picture, golden_pictures
from export.parity.pictures.reading import Reading, Sample
from export.parity.pictures.reference_mosaics import reference_mosaic
from runtime.errors import ImageError
from runtime.spec import Preprocessing


@dataclass(frozen=True)
class Batch:
    """Some pictures and their mosaics, uint8 ``[n, 224, 224, 3]``; n may be 0 where none could be read."""

    pictures: list[Picture]
    mosaics: NDArray[np.uint8]
    taken: int


@dataclass
class GoldenFeed:
    """The golden mosaics of a bundle."""

    mosaics: NDArray[np.uint8]

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.mosaics)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields them in order, ``size`` at a time."""
        pictures = golden_pictures(self.count)
        for start in range(0, self.count, size):
            part = self.mosaics[start : start + size]
            yield Batch(pictures[start : start + size], part, len(part))


@dataclass
class FileFeed:
    """Picture files, read by the gate's own preprocessing.

    Attributes:
        pictures: what to read.
        preprocessing: of the checkpoint.
        reading: which files are accepted.
        sample: that ``pictures`` are a part of what there is; None where they are all.
        unreadable: pictures that could not be read, each with the reason; they are compared nowhere.
        borrowed: how many were decoded by the runtime's decoder, because the gate has no rule for their kind.
    """

    pictures: list[Picture]
    preprocessing: Preprocessing
    reading: Reading = field(default_factory=Reading)
    sample: Sample | None = None
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    borrowed: int = 0

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.pictures)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields the readable ones in order, ``size`` files at a time; only one batch is in memory."""
        for start in range(0, self.count, size):
            part = self.pictures[start : start + size]
            read, mosaics = [], []
            for picture in part:
                mosaic = self._mosaic(picture)
                if mosaic is not None:
                    read.append(picture)
                    mosaics.append(mosaic)
            stacked = np.stack(mosaics) if mosaics else np.empty((0, 224, 224, 3), np.uint8)
            yield Batch(read, stacked, len(part))

    def _mosaic(self, picture: Picture) -> NDArray[np.uint8] | None:
        path = picture.path
        if path is None:
            return None
        try:
            found = reference_mosaic(path, self.preprocessing, self.reading.limits)
        except ImageError as err:
            self.unreadable.append((picture.name, str(err)))
            return None
        self.borrowed += not found.is_independent
        return found.pixels


Feed = GoldenFeed | FileFeed
