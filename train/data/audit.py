"""A look at every picture before training: what cannot be read is listed and left out, or stops the run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice

from runtime.console import Progress
from runtime.errors import DataError, ImageError
from train.config import DataConfig
from train.data.facts import FactsMemory, PictureFacts, picture_facts
from train.data.layout import Sample

logger = logging.getLogger("dgsnet.data")

# Names of pictures in one log line or error.
NAMED = 3
_LISTED = 10
# Futures that exist at once: a pool would make one for every picture of the data set, 1 kB each.
_CHUNK = 256
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        title: names the split in messages.
        samples: the readable ones, in the order given.
        facts: one for each of them.
        unreadable: the others, each with its reason.
        is_full: whether pixels were decoded, or headers read only.
        remembered: how many pictures were known from an earlier run.
    """

    title: str
    samples: list[Sample]
    facts: list[PictureFacts]
    unreadable: list[tuple[Sample, str]] = field(default_factory=list)
    is_full: bool = True
    remembered: int = 0


def audit_samples(samples: Sequence[Sample], config: DataConfig, *, title: str) -> Audit:
    """Reads every picture once, in threads, as ``data.audit`` says; a second run reads what has changed.

    A picture with a side under 32 pixels, of which no patch can be taken, counts as unreadable. The names of
    unreadable pictures go to the log, with their count.

    Args:
        samples: of one split, best as ``find_samples`` orders them: the memory is kept by folder.
        config: audit, workers, max_corrupt.
        title: names the split in messages, such as "train".

    Raises:
        DataError: more than ``data.max_corrupt`` of the pictures cannot be read, or no readable picture of
            one label is left.
    """
    is_full = config.audit == "full"
    readable: list[Sample] = []
    facts: list[PictureFacts] = []
    unreadable: list[tuple[Sample, str]] = []
    remembered = 0
    with (
        ThreadPoolExecutor(max(config.workers, 1)) as pool,
        Progress(f"looking at {title} pictures", len(samples)) as progress,
    ):
        for place, members in groupby(samples, FactsMemory.place_of):
            memory = FactsMemory(place)
            saved = time.monotonic()
            try:
                for chunk in _chunks(members):
                    looks = pool.map(lambda sample, known=memory: _look(sample, known, is_full), chunk)
                    for sample, (found, status) in zip(chunk, looks, strict=True):
                        progress.advance()
                        if isinstance(found, str):
                            unreadable.append((sample, found))
                            continue
                        if status is None:
                            remembered += 1
                        else:
                            memory.put(sample, status, found)
                        readable.append(sample)
                        facts.append(found)
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        memory.save()
                        saved = time.monotonic()
            finally:  # an interrupted audit goes on where it stopped
                memory.save()
    audit = Audit(title, readable, facts, unreadable, is_full, remembered)
    _report(audit, len(samples), config)
    return audit


def named(names: Iterable[str], count: int, limit: int = NAMED) -> str:
    """Returns the first names of ``count`` for a message, then how many more there are."""
    shown = list(islice(names, limit))
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _look(
    sample: Sample, memory: FactsMemory, is_full: bool
) -> tuple[PictureFacts | str, os.stat_result | None]:
    """Returns the facts, or the reason why there are none; and the file's state where it was read anew."""
    try:
        status = sample.path.stat()
        known = memory.get(sample, status, is_full=is_full)
        if known is not None:
            return known, None
        return picture_facts(sample, is_full=is_full), status
    except ImageError as err:
        return str(err).removeprefix(f"{sample.path}: ").removeprefix("bytes: "), None
    except OSError as err:
        return f"cannot be read ({err.strerror}); check its name and permissions", None


def _chunks(members: Iterable[Sample]) -> Iterator[list[Sample]]:
    rest = iter(members)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _report(audit: Audit, count: int, config: DataConfig) -> None:
    bad = len(audit.unreadable)
    logger.info(
        "%s: %d pictures, %d known from an earlier run, %d cannot be read",
        audit.title, count, audit.remembered, bad,
    )  # fmt: skip
    if bad > config.max_corrupt * count:
        first = named((f"{sample.name} ({reason})" for sample, reason in audit.unreadable), bad)
        raise DataError(
            f"{audit.title}: {bad} of {count} pictures cannot be read, expected at most "
            f"{config.max_corrupt:.2%}: {first}; replace them or raise data.max_corrupt"
        )
    for sample, reason in audit.unreadable[:_LISTED]:
        logger.warning("left out: %s: %s", sample.name, reason)
    if bad > _LISTED:
        logger.warning("left out: and %d more", bad - _LISTED)
    if labels := {sample.label for sample, _ in audit.unreadable} - {s.label for s in audit.samples}:
        raise DataError(
            f"{audit.title}: no picture of label {min(labels)} can be read, expected some of each"
        )
