"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes a file as ``written_atomically`` does.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is then untouched.
    """
    with written_atomically(path) as stream:
        stream.write(content)


@contextmanager
def written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Gives a stream to a temporary name beside the file's place; at the end it is synced and renamed there.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is then untouched.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    except OSError as err:
        # The caller asked for this file, not for the temporary one.
        raise OSError(err.errno, err.strerror, str(path)) from err
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as err:
        os.unlink(temporary)
        if isinstance(err, OSError):
            raise OSError(err.errno, err.strerror, str(path)) from err
        raise
    sync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left in a folder; call it where no other process writes there."""
    for path in folder.glob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
