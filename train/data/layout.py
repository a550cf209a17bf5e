"""Finding labelled pictures: ``ROOT/{train,val}/<class>/{0_real,1_fake}`` and ``ROOT/<generator>/...``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import DataError

LABEL_FOLDERS = {"0_real": 0, "1_fake": 1}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Sample:
    """One labelled picture.

    Attributes:
        key: path below the data set's root with forward slashes; names the sample everywhere.
        path: where the file is.
        label: 0 real, 1 generated.
        generator: the folder above the label folder.
    """

    key: str
    path: Path
    label: int
    generator: str


def find_samples(root: Path, split: str | None = None) -> list[Sample]:
    """Returns the samples of a split (or, with None, of a test set's root), sorted by key.

    Keys are relative to ``root`` and so begin with the split's name.

    Raises:
        DataError: the folder is missing, holds no pictures, or holds one label only.
    """
    folder = root / split if split else root
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected <class>/0_real and <class>/1_fake below it")
    samples = []
    for label_folder in sorted(folder.glob("*/*")):
        label = LABEL_FOLDERS.get(label_folder.name)
        if label is None or not label_folder.is_dir():
            continue
        for path in sorted(label_folder.iterdir()):
            if path.suffix.lower() in SUFFIXES:
                key = path.relative_to(root).as_posix()
                samples.append(Sample(key, path, label, label_folder.parent.name))
    labels = {sample.label for sample in samples}
    if len(labels) < 2:
        found = f"pictures of label {labels.pop()} only" if labels else "no pictures"
        raise DataError(f"{folder}: found {found}, expected pictures in <class>/0_real and <class>/1_fake")
    return samples


def fingerprint(samples: Iterable[Sample]) -> str:
    """Returns the SHA-256 (hex) over the keys, labels and sizes of a data set's files."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.key}\0{sample.label}\0{sample.path.stat().st_size}\n".encode())
    return digest.hexdigest()
