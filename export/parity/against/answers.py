"""What both engines of a pair say about the same pictures, in one pass and in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.parity.against.changes import Verdicts
from export.parity.against.sides import Pair
from export.parity.pictures.data_set import Picture
from runtime.console import Progress
from runtime.detection import ItemError
from runtime.detector import Detector
from runtime.errors import ImageError, ImageReadError, SpecError

# What is the file's fault: neither bundle can judge it.
_OF_THE_FILE = (ImageError.code, ImageReadError.code)
_Answer = tuple[float, ItemError | None]


@dataclass
class Answers:
    """The answers of a pair.

    Attributes:
        pictures: those that could be read, N of them.
        old: verdicts of the old bundle on them.
        new: verdicts of the new one.
        unreadable: pictures that could not be read, each with the reason.
        silent: readable pictures on which the new bundle has no verdict, each with the reason.
    """

    pictures: list[Picture]
    old: Verdicts
    new: Verdicts
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    silent: list[tuple[str, str]] = field(default_factory=list)


def answers_of(
    pair: Pair, title: str, pictures: Sequence[Picture], mosaics: NDArray[np.uint8] | None
) -> Answers:
    """Returns what both engines say, each with its own preprocessing and rule.

    Args:
        pair: the engines.
        title: for the progress.
        pictures: what is looked at.
        mosaics: uint8 ``[N, 224, 224, 3]`` of pictures without a file; None reads their files.
    """
    kept: list[Picture] = []
    before: list[float] = []
    after: list[float] = []
    unreadable: list[tuple[str, str]] = []
    silent: list[tuple[str, str]] = []
    olds, news = (_answers(detector, pictures, mosaics) for detector in (pair.old, pair.new))
    with Progress(title, len(pictures)) as progress:
        for picture, (old, old_error), (new, new_error) in zip(pictures, olds, news, strict=True):
            progress.advance()
            wrong = next((e for e in (new_error, old_error) if e and e.code in _OF_THE_FILE), None)
            if wrong is not None:
                unreadable.append((picture.name, wrong.message))
                continue
            if new_error is not None:
                silent.append((picture.name, new_error.message))
            kept.append(picture)
            before.append(old)
            after.append(new)
    return Answers(
        kept,
        Verdicts(np.array(before, np.float64), pair.old.bundle.manifest.decision),
        Verdicts(np.array(after, np.float64), pair.new.bundle.manifest.decision),
        unreadable,
        silent,
    )


def _answers(
    detector: Detector, pictures: Sequence[Picture], mosaics: NDArray[np.uint8] | None
) -> Iterator[_Answer]:
    if mosaics is not None:
        yield from _answers_to_mosaics(detector, mosaics)
        return
    files = (picture.path for picture in pictures if picture.path is not None)
    # Without a wait, so that the same pictures always meet in the same batches.
    for detection in detector.stream(files, max_wait_ms=None):
        yield (math.nan if detection.logit is None else detection.logit), detection.error


def _answers_to_mosaics(detector: Detector, mosaics: NDArray[np.uint8]) -> Iterator[_Answer]:
    for start in range(0, len(mosaics), detector.batch_size):
        logits, _ = detector.backend.run(mosaics[start : start + detector.batch_size])
        for logit in logits.tolist():
            if math.isfinite(logit):
                yield logit, None
            else:
                yield math.nan, ItemError(SpecError.code, f"found a logit of {logit}, expected a finite one")
