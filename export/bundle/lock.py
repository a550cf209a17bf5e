"""One writer at a time for one bundle: an advisory lock on a file beside it, gone when its holder is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UsageError


@contextmanager
def bundle_lock(destination: Path) -> Iterator[None]:
    """Holds the lock of the bundle at ``destination``, which need not exist; its parent must.

    The kernel drops the lock with the process, so a killed writer blocks nobody.

    Raises:
        UsageError: another writer holds it, or the folder cannot be locked in.
    """
    path = destination.with_name(f".{destination.name}.lock")
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        # Unlinked while still held: who opened the old file sees in _acquire that it has lost its name.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as err:
            raise UsageError(
                f"{path.parent}: cannot be written ({err.strerror}); name a folder of yours"
            ) from err
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError as err:
            holder = os.pread(descriptor, 100, 0).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            bundle = path.name.removeprefix(".").removesuffix(".lock")
            raise UsageError(f"{bundle}: {holder} is writing this bundle now; wait until it is done") from err
        except OSError as err:
            os.close(descriptor)
            raise UsageError(
                f"{path.parent}: cannot be locked in ({err.strerror}); use a local disk"
            ) from err
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
