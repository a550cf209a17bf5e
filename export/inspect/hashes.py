"""Hashes of the files that inspect shows, with a progress bar where they take long."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from export.bundle.hashing import file_entry
from runtime.bundle.manifest import FileEntry
from runtime.console import Progress

_MB = 10**6
# About a second of hashing; below it a bar would be noise.
_WORTH_A_BAR_MB = 500


def hashed_files(files: Sequence[Path]) -> list[FileEntry]:
    """Returns size and SHA-256 of every file, in order.

    Raises:
        OSError: one cannot be read.
    """
    total = sum(file.stat().st_size for file in files) // _MB
    entries = []
    with Progress("hashing, MB", total) if total >= _WORTH_A_BAR_MB else nullcontext() as progress:
        for file in files:
            entries.append(file_entry(file))
            if progress is not None:
                progress.advance(entries[-1].size // _MB, file.name)
    return entries
