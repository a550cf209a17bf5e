"""Files and their entries for a manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from runtime.bundle.manifest import FileEntry

_BLOCK_BYTES = 1 << 20


def file_entry(path: Path) -> FileEntry:
    """Returns size and SHA-256 of a file."""
    with path.open("rb") as reader:
        return _entry(reader, None)


def copy_hashed(source: Path, target: Path) -> FileEntry:
    """Copies a file to a name that does not exist yet, synced, and returns the entry of the copy."""
    with source.open("rb") as reader, target.open("xb") as writer:
        entry = _entry(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
    return entry


def _entry(reader: IO[bytes], writer: IO[bytes] | None) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    while block := reader.read(_BLOCK_BYTES):
        digest.update(block)
        size += len(block)
        if writer is not None:
            writer.write(block)
    return FileEntry(digest.hexdigest(), size)
