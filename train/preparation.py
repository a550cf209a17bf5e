"""What stands before training: the samples that can be read, checked, with captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UsageError
from train.config import DataConfig
from train.data.audit import Audit, audit_samples
from train.data.captions import find_captions
from train.data.confounds import check_confounds, check_duplicates
from train.data.layout import Sample, find_samples, has_split
from train.loop.ranks import Ranks


@dataclass(frozen=True)
class Found:
    """A data set as its folders and captions list it; no picture has been opened yet.

    Attributes:
        train: training samples.
        val: validation samples; empty where there is no such split.
        captions: by key, of the training samples; empty if the recipe needs none.
    """

    train: list[Sample]
    val: list[Sample]
    captions: dict[str, str]


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on.

    Attributes:
        train: readable training samples.
        val: readable validation samples.
        captions: one for each training sample; empty if the recipe needs none.
        facts: what a checkpoint says of the data, and what a resumed run must find again.
    """

    train: list[Sample]
    val: list[Sample]
    captions: list[str]
    facts: dict[str, Any]


def find_data(root: Path, *, captions: str | None, limit: int) -> Found:
    """Lists the samples of DATA and their captions: all mistakes that show without opening a picture.

    Args:
        root: holds the split "train", and "val" where there is one.
        captions: as ``find_captions`` takes it; None if the recipe needs none.
        limit: use at most so many pictures of each split, both labels alike; 0 uses all.

    Raises:
        DataError: no samples, or missing captions.
        UsageError: no captions are named and DATA holds none.
    """
    train = _limited(find_samples(root, "train"), limit)
    val = _limited(find_samples(root, "val"), limit) if has_split(root, "val") else []
    texts = [] if captions is None else find_captions(train, captions, root)
    return Found(train, val, {sample.key: text for sample, text in zip(train, texts, strict=False)})


def prepare_data(found: Found, config: DataConfig, ranks: Ranks) -> Prepared:
    """Looks at every picture and checks what the splits would teach.

    Args:
        found: of ``find_data``.
        config: how strict to be.
        ranks: the first process looks at the pictures, the others read what it found.

    Raises:
        DataError: too many unreadable pictures, a codec or size that gives the label away, or pictures in
            both splits.
    """
    with ranks.first_goes_first():
        seen = audit_samples(found.train, config, title="train")
        seen_val = audit_samples(found.val, config, title="val") if found.val else None
    check_confounds(seen, allow=config.allow_confounded)
    check_duplicates(seen, seen_val, allow=config.allow_duplicates)
    val = seen_val.samples if seen_val else []
    facts = {
        "train": len(seen.samples),
        "val": len(val),
        "unreadable": len(seen.unreadable) + (len(seen_val.unreadable) if seen_val else 0),
        "fingerprint": _fingerprint(seen),
        "val_fingerprint": _fingerprint(seen_val) if seen_val else None,
    }
    captions = [found.captions[sample.key] for sample in seen.samples] if found.captions else []
    return Prepared(seen.samples, val, captions, facts)


def _fingerprint(audit: Audit) -> str:
    """Returns the SHA-256 (hex) over keys, labels and the hashes of the files."""
    digest = hashlib.sha256()
    for sample, facts in zip(audit.samples, audit.facts, strict=True):
        digest.update(f"{sample.key}\0{sample.label}\0".encode("utf-8", "surrogateescape") + facts.file_hash)
    return digest.hexdigest()


def _limited(samples: list[Sample], limit: int) -> list[Sample]:
    """Returns evenly spaced samples of each label, in their order, so that every class keeps its share."""
    if not limit or len(samples) <= limit:
        return samples
    if limit < 2:
        raise UsageError(f"--limit: found {limit}, expected 2 or more: a picture of each label")
    chosen: set[int] = set()
    for label, count in ((0, limit // 2), (1, limit - limit // 2)):
        places = [place for place, sample in enumerate(samples) if sample.label == label]
        chosen |= {places[k * len(places) // count] for k in range(min(count, len(places)))}
    return [sample for place, sample in enumerate(samples) if place in chosen]
