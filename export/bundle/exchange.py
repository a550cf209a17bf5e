"""Putting a finished folder in the place of an old one."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from pathlib import Path

logger = logging.getLogger("dgsnet.export.bundle")

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(new: Path, old: Path) -> bool:
    """Swaps two folders in one step; afterwards ``new`` holds what ``old`` held.

    Returns:
        Whether it was done; False means that this system or file system cannot.

    Raises:
        OSError: it can, and something else is wrong.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(old))


def rename_aside(new: Path, old: Path, aside: Path) -> None:
    """Swaps two folders in two steps: for a moment nothing is at ``old``, and ``aside`` is said before it.

    Raises:
        OSError: a rename failed; ``old`` is back in its place unless a warning says otherwise.
    """
    logger.info(
        "%s: replacing it; should this be interrupted, rename %s back to %s", old.name, aside.name, old.name
    )
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
