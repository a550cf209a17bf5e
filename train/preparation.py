"""What stands before training: the samples that can be read, checked, with captions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import DataError
from train.config import DataConfig
from train.data.audit import audit_samples
from train.data.captions import find_captions
from train.data.confounds import check_confounds, check_duplicates
from train.data.layout import Sample, find_samples, fingerprint, has_split
from train.loop.ranks import Ranks

logger = logging.getLogger("dgsnet")


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on.

    Attributes:
        train: readable training samples.
        val: readable validation samples; empty where there is no such split.
        captions: one for each training sample; empty if the recipe needs none.
        unreadable: how many pictures of both splits were left out.
    """

    train: list[Sample]
    val: list[Sample]
    captions: list[str]
    unreadable: int

    def facts(self) -> dict[str, Any]:
        """Returns what a checkpoint says of the data, and what a resumed run must find again."""
        return {
            "train": len(self.train),
            "val": len(self.val),
            "unreadable": self.unreadable,
            "fingerprint": fingerprint(self.train),
            "val_fingerprint": fingerprint(self.val),
        }


def prepare_data(
    root: Path, config: DataConfig, *, captions: str | None, limit: int, ranks: Ranks
) -> Prepared:
    """Finds, looks at and checks the samples of DATA.

    Args:
        root: holds the split "train", and "val" where there is one.
        config: how strict to be.
        captions: as ``find_captions`` takes it; None if the recipe needs none.
        limit: use at most so many pictures of each split, both labels alike; 0 uses all.
        ranks: the first process looks at the pictures, the others read what it found.

    Raises:
        DataError: no samples, too many unreadable ones, a codec or size that gives the label away, pictures
            in both splits, missing captions.
        UsageError: no captions are named and DATA holds none.
    """
    train = _limited(find_samples(root, "train"), limit)
    val = _limited(find_samples(root, "val"), limit) if has_split(root, "val") else []
    if captions is not None:
        find_captions(train, captions, root)  # what is missing is said before pictures are read
    with ranks.first_goes_first():
        seen = audit_samples(train, config, title="train")
        seen_val = audit_samples(val, config, title="val") if val else None
    check_confounds(seen, allow=config.allow_confounded)
    check_duplicates(seen, seen_val, allow=config.allow_duplicates)
    return Prepared(
        seen.samples,
        seen_val.samples if seen_val else [],
        find_captions(seen.samples, captions, root) if captions is not None else [],
        len(seen.unreadable) + (len(seen_val.unreadable) if seen_val else 0),
    )


def _limited(samples: list[Sample], limit: int) -> list[Sample]:
    """Returns evenly spaced samples of each label, in their order, so that every class keeps its share."""
    if not limit or len(samples) <= limit:
        return samples
    if limit < 2:
        raise DataError(f"--limit: found {limit}, expected at least one picture of each label")
    chosen: set[int] = set()
    for label, count in ((0, limit // 2), (1, limit - limit // 2)):
        places = [place for place, sample in enumerate(samples) if sample.label == label]
        chosen |= {places[k * len(places) // count] for k in range(min(count, len(places)))}
    return [sample for place, sample in enumerate(samples) if place in chosen]
