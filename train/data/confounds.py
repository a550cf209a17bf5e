"""What would make a data set's scores mean something else than they say.

A codec or a size that gives the label away, and pictures on both sides of a line that should part them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError
from train.data.audit import Audit, named
from train.data.facts import PictureFacts
from train.data.layout import Sample

logger = logging.getLogger("dgsnet.data")

# Balanced accuracy of the label from one property alone; chance is 0.5.
CONFOUND_LIMIT = 0.95
_BINS_PER_OCTAVE = 4

_PROPERTIES: tuple[tuple[str, Callable[[PictureFacts], object]], ...] = (
    ("codec", lambda facts: facts.codec),
    ("size", lambda facts: f"{facts.width} x {facts.height}"),
    ("width", lambda facts: f"{facts.width} pixels wide"),
    ("height", lambda facts: f"{facts.height} pixels high"),
    (
        "pixel count",
        lambda facts: f"about {2 ** (_octave_bin(facts) / _BINS_PER_OCTAVE) / 1e6:.2g} megapixels",
    ),
)


def check_confounds(audit: Audit, *, allow: bool) -> None:
    """Refuses a data set whose labels can be told without looking at a pixel.

    Each property by itself (codec, width x height, width, height, number of pixels in quarter octaves) is
    scored by ``leave_one_out_accuracy``. Above 0.95 a detector can reach its loss by reading compression
    traces or the grid of a size, and every score on such data says nothing. Within one generator or class the
    same finding is a warning: the others may make up for it.

    Args:
        audit: of the training split.
        allow: ``data.allow_confounded``: warn instead.

    Raises:
        DataError: one property predicts the label, and ``allow`` is False.
    """
    finding = _first_confound(audit.samples, audit.facts)
    if finding is not None:
        message = (
            f"{audit.title}: {finding}; a detector would learn that instead of traces of generation: "
            "re-encode and crop both classes alike"
        )
        if not allow:
            raise DataError(f"{message}, or set data.allow_confounded=true")
        logger.warning("%s (data.allow_confounded is on)", message)
        return
    by_generator = sorted(range(len(audit.samples)), key=lambda k: audit.samples[k].generator)
    for generator, places in groupby(by_generator, lambda k: audit.samples[k].generator):
        chosen = list(places)
        finding = _first_confound([audit.samples[k] for k in chosen], [audit.facts[k] for k in chosen])
        if finding is not None:
            logger.warning("%s, within %r: %s", audit.title, generator, finding)


def check_duplicates(train: Audit, val: Audit | None, *, allow: bool) -> None:
    """Refuses pictures of val that are in train, and equal pictures under both labels of train.

    Pictures are equal when their files are, or their decoded pixels (which finds a copy that was saved again
    without loss, and only where both splits were audited in full).

    Args:
        train: of the training split.
        val: of the validation split, if there is one.
        allow: ``data.allow_duplicates``: warn instead.

    Raises:
        DataError: there are such pictures, and ``allow`` is False.
    """
    first: dict[bytes, Sample] = {}
    both: list[str] = []
    for sample, facts in zip(train.samples, train.facts, strict=True):
        twins = [first.setdefault(found, sample) for found in _hashes(facts)]
        twin = next((twin for twin in twins if twin.label != sample.label), None)
        if twin is not None:
            both.append(f"{sample.name} = {twin.name}")
    _refuse(both, f"{train.title}: {len(both)} pictures stand under both labels", allow)
    if val is None:
        return
    shared = [
        f"{sample.name} = {twin.name}"
        for sample, facts in zip(val.samples, val.facts, strict=True)
        if (twin := next((first[found] for found in _hashes(facts) if found in first), None)) is not None
    ]
    _refuse(
        shared, f"{val.title}: {len(shared)} of {len(val.samples)} pictures are in {train.title} too", allow
    )


def leave_one_out_accuracy(values: Iterable[object], labels: NDArray[np.int64]) -> float:
    """Returns how well one property tells the label, as accuracy balanced over both classes.

    The rule gives each value the label that is more frequent there, relative to the sizes of the classes,
    and every picture is judged by a rule made from all the others, so that a value of one picture predicts
    nothing about it; ties count one half. Values of one picture only are taken together as "rare", since a
    class of rare sizes against a class of a single size is told apart all the same. Many distinct values
    spread over both classes alike score one half or less.

    Args:
        values: hashable, ``N`` of them.
        labels: 0 or 1, int64 ``[N]``, some of each.
    """
    places: dict[object, int] = {}
    cells = np.array([places.setdefault(value, len(places)) for value in values])
    sizes = np.bincount(cells)
    cells = np.where(sizes[cells] == 1, len(sizes), cells)
    counts = np.stack([np.bincount(cells[labels == y], minlength=len(sizes) + 1) for y in (0, 1)])
    totals = counts.sum(axis=1)
    correct = []
    for label in (0, 1):
        own, other = counts[label] - 1, counts[1 - label]
        # own / (total - 1) against other / total of the other class, in whole numbers.
        ahead = np.sign(own * totals[1 - label] - other * (totals[label] - 1))
        correct.append(float(((ahead + 1) / 2 * counts[label]).sum()) / totals[label])
    return sum(correct) / 2


def _first_confound(samples: list[Sample], facts: list[PictureFacts]) -> str | None:
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    if len(set(labels.tolist())) < 2:
        return None
    for name, value_of in _PROPERTIES:
        values = [value_of(one) for one in facts]
        accuracy = leave_one_out_accuracy(values, labels)
        if accuracy > CONFOUND_LIMIT:
            frequent = [
                Counter(v for v, y in zip(values, labels, strict=True) if y == k).most_common(1)[0][0]
                for k in (0, 1)
            ]
            return (
                f"the {name} alone tells real from generated with {accuracy:.1%} accuracy (chance 50%; most "
                f"frequent: real {frequent[0]}, generated {frequent[1]})"
            )
    return None


def _octave_bin(facts: PictureFacts) -> int:
    return math.floor(_BINS_PER_OCTAVE * math.log2(facts.width * facts.height))


def _hashes(facts: PictureFacts) -> list[bytes]:
    return [facts.file_hash] if facts.pixel_hash is None else [facts.file_hash, facts.pixel_hash]


def _refuse(pairs: list[str], found: str, allow: bool) -> None:
    if not pairs:
        return
    message = f"{found}: {named(pairs, len(pairs))}"
    if not allow:
        raise DataError(f"{message}; remove them, or set data.allow_duplicates=true")
    logger.warning("%s (data.allow_duplicates is on)", message)
