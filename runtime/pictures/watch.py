"""A folder that pictures arrive in: each is passed on once it has stopped growing. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from runtime.pictures.scan import pictures_below
from runtime.results import FileState, file_state

POLL_SECONDS = 1.0


def pictures_now(folder: str, *, recursive: bool = True, all_files: bool = False) -> dict[str, FileState]:
    """Returns the pictures below a folder and the state of each.

    Raises:
        FileNotFoundError: the folder went away.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "the watched folder went away", folder)
    return {
        path: file_state(path) for path in pictures_below(folder, recursive=recursive, all_files=all_files)
    }


def arriving_pictures(
    folder: str,
    known: dict[str, FileState],
    *,
    recursive: bool = True,
    all_files: bool = False,
    poll_s: float = POLL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yields the pictures that appear below a folder, or change there, for ever.

    A file counts as complete when two looks in a row, ``poll_s``
    apart, find it with the same size, above 0, and the same modification time.

    Args:
        folder: where to look.
        known: what is left alone as long as it stays as it is, from ``pictures_now``.
        recursive: whether to look into folders inside it.
        all_files: whether every regular file counts as a picture.
        poll_s: seconds between looks.
        sleep: how to wait.

    Raises:
        FileNotFoundError: the folder went away.
    """
    known = dict(known)
    before = pictures_now(folder, recursive=recursive, all_files=all_files)
    while True:
        sleep(poll_s)
        now = pictures_now(folder, recursive=recursive, all_files=all_files)
        for path, state in now.items():
            if known.get(path) != state and before.get(path) == state and state.size:
                known[path] = state
                yield path
        known = {path: state for path, state in known.items() if path in now}
        before = now
