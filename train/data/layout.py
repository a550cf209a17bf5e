"""Finding labelled pictures: ``ROOT/{train,val}/<class>/{0_real,1_fake}`` and ``ROOT/<generator>/...``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import DataError
from runtime.names import printable_name
from runtime.scan import SUFFIXES

LABEL_FOLDERS = {"0_real": 0, "1_fake": 1}
LAYOUT = "<class>/0_real and <class>/1_fake"


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

    @property
    def name(self) -> str:
        """The key for a message: one line of valid text."""
        return printable_name(self.key)


def find_samples(root: Path, split: str | None = None) -> list[Sample]:
    """Returns the samples of a split (or, with None, of a test set's root), ordered by class, label and name.

    Keys are relative to ``root`` and so begin with the split's name. Hidden files and folders, and files
    that are no pictures by their suffix, are passed over; a folder that would be passed over is an error.

    Raises:
        DataError: the folder is missing, holds no pictures or one label only, or is laid out otherwise.
    """
    folder = root / split if split else root
    if not folder.is_dir():
        raise DataError(f"{_name(folder)}: not a folder; expected {LAYOUT} below it")
    samples = []
    for group in _visible_folders(folder):
        found = _visible_folders(group)
        label_folders = [inner for inner in found if inner.name in LABEL_FOLDERS]
        _refuse_deeper_labels(folder, group)
        if not label_folders:
            raise DataError(
                f"{_name(group)}: found no label folder inside, expected {LAYOUT} directly below "
                f"{_name(folder)}"
            )
        for label_folder in label_folders:
            for path in _pictures(label_folder):
                key = path.relative_to(root).as_posix()
                samples.append(Sample(key, path, LABEL_FOLDERS[label_folder.name], group.name))
    labels = {sample.label for sample in samples}
    if len(labels) < 2:
        kind = f"pictures of label {labels.pop()} only" if labels else "no pictures"
        raise DataError(f"{_name(folder)}: found {kind}, expected pictures in {LAYOUT}")
    return samples


def fingerprint(samples: Iterable[Sample]) -> str:
    """Returns the SHA-256 (hex) over the keys, labels and sizes of a data set's files."""
    digest = hashlib.sha256()
    for sample in samples:
        line = f"{sample.key}\0{sample.label}\0{sample.path.stat().st_size}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def _pictures(label_folder: Path) -> list[Path]:
    pictures = []
    for path in sorted(label_folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise DataError(
                f"{_name(path)}: a folder inside a label folder, expected pictures directly in {LAYOUT}; "
                "move its pictures up"
            )
        if path.suffix.lower() in SUFFIXES:
            pictures.append(path)
    return pictures


def _refuse_deeper_labels(folder: Path, group: Path) -> None:
    for place, names, _ in os.walk(group):
        depth = len(Path(place).relative_to(group).parts)
        # Inside a label folder every folder is refused on its own account.
        names[:] = [n for n in names if not n.startswith(".") and not (depth == 0 and n in LABEL_FOLDERS)]
        deeper = sorted(set(names) & set(LABEL_FOLDERS))
        if deeper:
            raise DataError(
                f"{_name(Path(place) / deeper[0])}: a label folder too deep down, expected {LAYOUT} directly "
                f"below {_name(folder)}; move {_name(Path(place))} up"
            )


def _name(path: Path) -> str:
    return printable_name(str(path))
