"""Where captions are written: one JSON map, or a text file beside each picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from runtime.errors import DataError, UsageError
from runtime.files import write_atomically
from runtime.names import printable_name
from train.data.captions import SIDECAR_SUFFIX, CaptionMap, flaw_of
from train.data.layout import Sample, read_sidecar


class CaptionStore(Protocol):
    """A place for captions that keeps what it already holds."""

    def has(self, sample: Sample) -> bool:
        """Whether a usable caption of the sample is there."""
        ...

    def put(self, sample: Sample, caption: str) -> None:
        """Adds or replaces a caption; it is safe on disk only after ``flush``."""
        ...

    def flush(self) -> None:
        """Writes what ``put`` has collected, atomically."""
        ...

    @property
    def place(self) -> str:
        """Where the captions are, for a message."""
        ...


class JsonStore:
    """One JSON object, ``Sample.key`` -> caption, keys sorted; other keys of the file stay as they are."""

    def __init__(self, path: Path) -> None:
        """Reads what the file holds.

        Raises:
            DataError: the file is there and is no caption map.
            UsageError: its folder cannot be written.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            # Said now, not after hours of captioning.
            raise UsageError(f"{printable_name(str(path.parent))}: cannot be written; give -o FILE elsewhere")
        self._captions = CaptionMap.read(path) if path.exists() else CaptionMap(path, {})
        self._is_changed = False

    def has(self, sample: Sample) -> bool:
        """Whether the map holds a usable caption of the sample."""
        caption = self._captions.get(sample)
        return caption is not None and flaw_of(caption) is None

    def put(self, sample: Sample, caption: str) -> None:
        """Adds or replaces a caption in memory."""
        self._captions.content[sample.key] = caption
        self._is_changed = True

    def flush(self) -> None:
        """Writes the whole map atomically."""
        if self._is_changed:
            # ASCII, because a key may be the name of a file that is not valid Unicode.
            text = json.dumps(self._captions.content, indent=0, sort_keys=True)
            write_atomically(self._path, (text + "\n").encode("ascii"))
            self._is_changed = False

    @property
    def place(self) -> str:
        """The file's name."""
        return printable_name(str(self._path))


class SidecarStore:
    """A text file beside each picture: ``000.png`` -> ``000.txt``; one line of UTF-8."""

    def __init__(self, samples: Sequence[Sample], root: Path) -> None:
        """Checks that each picture can have a text file of its own.

        Raises:
            DataError: pictures inside shards, or two pictures that would share a text file.
        """
        self._root = root
        owners: dict[Path, Sample] = {}
        for sample in samples:
            if sample.span is not None:
                raise DataError(
                    f"{sample.name}: is inside a shard, which is not written into; write a JSON map with -o"
                )
            other = owners.setdefault(_sidecar(sample), sample)
            if other is not sample:
                raise DataError(
                    f"{other.name} and {sample.name} would share one {SIDECAR_SUFFIX} file; write a JSON map "
                    "with -o, or rename one of them"
                )

    def has(self, sample: Sample) -> bool:
        """Whether the text file is there and holds a usable caption.

        Raises:
            DataError: it is there and is no text.
        """
        caption = read_sidecar(sample, SIDECAR_SUFFIX)
        return caption is not None and flaw_of(caption) is None

    def put(self, sample: Sample, caption: str) -> None:
        """Writes the text file at once, atomically."""
        write_atomically(_sidecar(sample), (caption + "\n").encode("utf-8"))

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def place(self) -> str:
        """What was written where."""
        return f"{SIDECAR_SUFFIX} files in {printable_name(str(self._root))}"


def _sidecar(sample: Sample) -> Path:
    return sample.path.with_suffix(SIDECAR_SUFFIX)
