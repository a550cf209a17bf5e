"""The last hop: the runtime's own Detector from the bytes of a file, and what differs if it goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.parity.pictures.data_set import Picture
from export.parity.pictures.reference_mosaics import mosaic_from_image, reference_pixels
from runtime.decode import DecodeLimits
from runtime.detector import Detector
from runtime.errors import DgsNetError
from runtime.pipeline.preparation import Prepared
from runtime.spec import PATCH_SIDE

REVERSED = "the colour channels are reversed (BGR for RGB)"
# Telling reversed channels from other pixels takes a second selection; a report shows only a few.
_MOST_TOLD_REVERSED = 20


@dataclass
class FilesForm:
    """The runtime from file bytes: decoding, patch selection, batching and the engine.

    Attributes:
        key: of its hop.
        parent: key of the engine that it runs.
        detector: the opened bundle, with the same ``limits``.
        limits: which files are accepted.
        refused: files that the gate could read and the runtime could not, each with the reason.
        mosaics_compared: files whose mosaic was compared byte by byte.
        differing: those of them with another mosaic, each with what differs.
    """

    key: str
    parent: str
    precision: str
    detector: Detector
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    refused: list[tuple[str, str]] = field(default_factory=list)
    mosaics_compared: int = 0
    differing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The hop's name for a person."""
        return f"from file bytes, {self.detector.backend.name}"

    def run_files(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Returns the raw logits, float32 ``[n]``; NaN where the runtime gives no verdict."""
        paths = [picture.path for picture in pictures if picture.path is not None]
        logits = np.full(len(pictures), np.nan, dtype=np.float32)
        for index, detection in enumerate(self.detector.predict(paths)):
            if detection.logit is not None:
                logits[index] = detection.logit
            else:
                reason = detection.error.message if detection.error else "no reason given"
                self.refused.append((pictures[index].name, reason))
        return logits

    def compare_mosaic(self, picture: Picture, reference: NDArray[np.uint8]) -> None:
        """Compares the mosaic that the detector makes of one file with the gate's, byte by byte.

        A logit within the tolerance can hide two swapped cells, or one rare kind of file; bytes cannot.

        Args:
            picture: the file.
            reference: the gate's mosaic of it, uint8 ``[224, 224, 3]``.
        """
        if picture.path is None:
            return
        prepared = self.detector.prepare(picture.path)
        if not isinstance(prepared, Prepared):
            return  # the detector refuses it in its verdict as well, and that is reported
        self.mosaics_compared += 1
        mosaic = prepared.mosaics[0]
        if not np.array_equal(mosaic, reference):
            is_reversed = len(self.differing) < _MOST_TOLD_REVERSED and self._is_reversed(
                picture.path, mosaic
            )
            text = REVERSED if is_reversed else mosaic_difference(mosaic, reference)
            self.differing.append((picture.name, text))

    def _is_reversed(self, path: Path, mosaic: NDArray[np.uint8]) -> bool:
        """Reversed channels change the grey values too, and with them which patches are chosen."""
        try:
            pixels, _ = reference_pixels(path, self.limits)
            turned = mosaic_from_image(pixels[..., ::-1], self.detector.bundle.manifest.preprocessing)
        except DgsNetError:
            return False
        return np.array_equal(turned, mosaic)


def mosaic_difference(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> str:
    """Returns in words how one mosaic, uint8 ``[224, 224, 3]``, differs from what was expected."""
    if np.array_equal(found[..., ::-1], expected):
        return REVERSED
    cells, wanted = _cells(found), _cells(expected)
    wrong = [k for k in range(len(cells)) if cells[k] != wanted[k]]
    if sorted(cells) == sorted(wanted):
        places = ", ".join(str(k) for k in wrong[:6]) + (", ..." if len(wrong) > 6 else "")
        return f"the same patches stand in another order ({len(wrong)} of {len(cells)} cells: {places})"
    shared = len(set(cells) & set(wanted))
    if shared:
        return f"{len(wrong)} of {len(cells)} cells differ, {shared} patches are shared: others are chosen"
    return f"all {len(cells)} cells hold other pixels: the pictures are decoded differently"


def _cells(mosaic: NDArray[np.uint8]) -> list[bytes]:
    grid = mosaic.shape[0] // PATCH_SIDE
    cut = mosaic.reshape(grid, PATCH_SIDE, grid, PATCH_SIDE, 3).transpose(0, 2, 1, 3, 4)
    return [cell.tobytes() for cell in cut.reshape(grid * grid, -1)]
