"""Finding labelled pictures in folders and in tar shards.

Three layouts are read, below ROOT/<split> in training and below ROOT itself for a test set:
``<class or generator>/{0_real,1_fake}/*`` as AIGIBench has them, ``{0_real,1_fake}/*`` or ``{real,fake}/*``
directly, and WebDataset shards ``*.tar``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import DataError, ImageError, one_line
from runtime.names import printable_name
from runtime.pictures.scan import SUFFIXES
from train.data.shards import SIDECAR_LIMIT, read_span, shard_members

logger = logging.getLogger("dgsnet.data")

LABEL_FOLDERS = {"0_real": 0, "1_fake": 1, "real": 0, "fake": 1}
LAYOUT = "<class>/0_real and <class>/1_fake"
LAYOUTS = f"{LAYOUT}, or real and fake, or *.tar shards"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture.

    Attributes:
        key: path below the data set's root with forward slashes, through the shard where there is one; names
            the sample everywhere.
        path: the picture's file, or the shard that holds it.
        label: 0 real, 1 generated.
        generator: the folder above the label folder, or what a shard says.
        span: of a picture in a shard, its first byte and its length in bytes.
        beside: of a picture in a shard, suffix, first byte and length of its label and caption members.
    """

    key: str
    path: Path
    label: int
    generator: str
    span: tuple[int, int] | None = None
    beside: tuple[tuple[str, int, int], ...] = ()

    @property
    def name(self) -> str:
        """The key for a message: one line of valid text."""
        return printable_name(self.key)

    def source(self) -> Path | bytes:
        """Returns what ``runtime.decode.decode_image`` takes: the file's path, or its bytes out of the shard.

        Raises:
            ImageError: the shard cannot be read.
        """
        if self.span is None:
            return self.path
        try:
            return read_span(self.path, self.span)
        except (OSError, DataError) as err:
            raise ImageError(f"{_name(self.path)}: cannot be read ({err}); check the shard") from err

    def byte_size(self) -> int:
        """Returns the length of the picture's file in bytes.

        Raises:
            OSError: it is gone.
        """
        return self.path.stat().st_size if self.span is None else self.span[1]


def has_split(root: Path, split: str) -> bool:
    """Says whether ``find_samples(root, split)`` has a folder to read."""
    return _split_folder(root, split) is not None


def find_samples(root: Path, split: str | None = None) -> list[Sample]:
    """Returns the samples of a split (or, with None, of a test set's root), ordered by class, label and name.

    Keys are relative to the data set's root and so begin with the split's name. ROOT may also be the folder
    of the split "train" itself, or of the split that is asked for: a folder of that name keeps the keys that
    it has from its parent, so that captions and draws stay the same. Samples of shards are ordered by shard
    and their place in it. Hidden files and folders, and files that are no pictures by their suffix, are
    passed over; a folder that would be passed over is an error.

    Raises:
        DataError: the folder is missing, holds no pictures or one label only (as a whole, or in one class
            folder), or is laid out otherwise; a shard is damaged.
    """
    folder, base = root, root
    if split is not None:
        found = _split_folder(root, split)
        if found is None:
            raise DataError(f"{_name(root / split)}: not a folder; expected {LAYOUTS} below it")
        folder, base = found
        if folder != root / split:
            logger.info("%s has no folder %s: reading %s as it", _name(root), split, _name(folder))
    if not folder.is_dir():
        raise DataError(f"{_name(folder)}: not a folder; expected {LAYOUTS} below it")
    groups = _visible_folders(folder)
    shards = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    direct = [group for group in groups if group.name in LABEL_FOLDERS]
    if shards and groups:
        raise DataError(
            f"{_name(folder)}: found shards ({_name(Path(shards[0].name))}) and folders "
            f"({_name(Path(groups[0].name))}), expected one of them; move the other away"
        )
    if direct and len(direct) < len(groups):
        other = next(group for group in groups if group not in direct)
        raise DataError(
            f"{_name(folder)}: found {direct[0].name} beside {_name(Path(other.name))}, expected label "
            f"folders only, or {LAYOUT}"
        )
    if shards:
        samples = [sample for shard in shards for sample in _shard_samples(shard, base)]
    elif direct:
        samples = _class_samples(folder, folder, base)
    else:
        samples = [sample for group in groups for sample in _class_samples(group, folder, base)]
    _refuse_one_label(folder, samples)
    return samples


def split_folder(sample: Sample) -> Path:
    """Returns the folder of the split that a sample belongs to, such as ROOT/val."""
    if sample.span is not None:
        return sample.path.parent
    return sample.path.parents[len(Path(sample.key).parts) - 2]


def fingerprint(samples: Iterable[Sample]) -> str:
    """Returns the SHA-256 (hex) over the keys, labels and sizes of a data set's files."""
    digest = hashlib.sha256()
    for sample in samples:
        line = f"{sample.key}\0{sample.label}\0{sample.byte_size()}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_sidecar(sample: Sample, suffix: str = ".txt") -> str | None:
    """Returns the text beside a picture, in its folder or its shard; None when there is none.

    It is the member or file of the picture's name with another suffix, else "caption" of its ``.json``.

    Raises:
        DataError: it cannot be read, is not UTF-8 text of at most 1 MiB, or its JSON is broken.
    """
    content = _bytes_beside(sample, suffix)
    try:
        if content is not None:
            return content.decode("utf-8").strip()
        content = _bytes_beside(sample, ".json")
        fields = {} if content is None else json.loads(content)
    except (ValueError, RecursionError) as err:
        reason = one_line(err)
        raise DataError(f"{sample.name}: its {suffix} or .json cannot be read as text ({reason})") from err
    caption = fields.get("caption") if isinstance(fields, dict) else fields
    if caption is not None and not isinstance(caption, str):
        raise DataError(f'{sample.name}: its .json has no text as "caption", expected {{"caption": "..."}}')
    return caption if caption is None else caption.strip()


def _bytes_beside(sample: Sample, suffix: str) -> bytes | None:
    try:
        if sample.span is None:
            with sample.path.with_suffix(suffix).open("rb") as stream:
                content = stream.read(SIDECAR_LIMIT + 1)
        else:
            spans = {name: (offset, min(size, SIDECAR_LIMIT + 1)) for name, offset, size in sample.beside}
            if suffix not in spans:
                return None
            content = read_span(sample.path, spans[suffix])
    except OSError as err:
        if sample.span is None and isinstance(err, FileNotFoundError):
            return None
        raise DataError(f"{sample.name}: its {suffix} cannot be read ({err.strerror})") from err
    if len(content) > SIDECAR_LIMIT:
        raise DataError(f"{sample.name}: its {suffix} is over {SIDECAR_LIMIT} bytes, expected a short text")
    return content


def _split_folder(root: Path, split: str) -> tuple[Path, Path] | None:
    """Returns the folder of a split and the one that its keys are relative to."""
    if (root / split).is_dir():
        return root / split, root
    own = Path(os.path.abspath(root))
    if own.name == split and own.is_dir():
        return own, own.parent
    if own.name == "train":
        return (own.parent / split, own.parent) if (own.parent / split).is_dir() else None
    return (root, root) if split == "train" and _holds_samples(root) else None


def _holds_samples(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    groups = _visible_folders(folder)
    label_folders = {*groups, *(inner for group in groups for inner in _visible_folders(group))}
    return any(path.name in LABEL_FOLDERS for path in label_folders) or any(folder.glob("[!.]*.tar"))


def _class_samples(group: Path, folder: Path, base: Path) -> list[Sample]:
    label_folders = [inner for inner in _visible_folders(group) if inner.name in LABEL_FOLDERS]
    label_folders.sort(key=lambda inner: (LABEL_FOLDERS[inner.name], inner.name))
    _refuse_deeper_labels(folder, group)
    if not label_folders:
        raise DataError(
            f"{_name(group)}: found no label folder inside, expected {LAYOUT} directly below {_name(folder)}"
        )
    generator = Path(os.path.abspath(group)).name
    prefix = group.relative_to(base).as_posix()
    samples = [
        Sample(
            f"{prefix}/{inner.name}/{name}".removeprefix("./"),
            inner / name,
            LABEL_FOLDERS[inner.name],
            generator,
        )
        for inner in label_folders
        for name in _pictures(inner)
    ]
    _refuse_one_label(group, samples)
    return samples


def _shard_samples(shard: Path, base: Path) -> list[Sample]:
    prefix = shard.relative_to(base).as_posix()
    return [
        Sample(f"{prefix}/{member.name}", shard, member.label, member.generator, member.span, member.beside)
        for member in shard_members(shard)
    ]


def _refuse_one_label(folder: Path, samples: list[Sample]) -> None:
    labels = {sample.label for sample in samples}
    if len(labels) < 2:
        kind = f"pictures of label {labels.pop()} only" if labels else "no pictures"
        raise DataError(f"{_name(folder)}: found {kind}, expected pictures of both labels in {LAYOUTS}")


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def _pictures(label_folder: Path) -> list[str]:
    pictures = []
    with os.scandir(label_folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                raise DataError(
                    f"{_name(label_folder / entry.name)}: a folder inside a label folder, expected pictures "
                    f"directly in {LAYOUT}; move its pictures up"
                )
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                pictures.append(entry.name)
    return sorted(pictures)


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
