"""Which pictures ``predict`` judges: PATHS, names on standard input, a watched folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO

from runtime.errors import UsageError
from runtime.pictures.scan import LeftOut, count_pictures, expand_paths


class Sources:
    """The names of pictures that a command line stands for.

    Args:
        paths: files, folders, or "-" for standard input.
        watched: folder whose new pictures come after those, for ever; None for none.
        recursive: whether folders inside folders are entered.
        all_files: whether every regular file of a folder counts as a picture.
        nul: whether names on standard input end with NUL.

    Attributes:
        left_out: files that were passed over in the folders of ``paths``; complete once all names were read.
    """

    def __init__(
        self, paths: Sequence[str], watched: str | None, *, recursive: bool, all_files: bool, nul: bool
    ) -> None:
        self.left_out = LeftOut()
        self._paths = paths
        self._watched = watched
        self._recursive = recursive
        self._all_files = all_files
        self._nul = nul

    @property
    def is_countable(self) -> bool:
        """Whether ``count`` can know how many names there will be."""
        return "-" not in self._paths and self._watched is None

    def count(self) -> int:
        """Returns how many names there will be if no file comes or goes meanwhile."""
        return count_pictures(self._paths, recursive=self._recursive, all_files=self._all_files)

    def names(self) -> Iterator[str]:
        """Yields the names as they are found.

        Raises:
            UsageError: standard input is closed, or holds no names.
        """
        # Opened at once: what is wrong with it is said before anything is judged.
        stdin = _stdin() if "-" in self._paths else None
        pictures = expand_paths(
            self._paths,
            recursive=self._recursive,
            all_files=self._all_files,
            names=stdin,
            nul=self._nul,
            left_out=self.left_out,
        )
        if self._watched is None:
            yield from pictures
            return
        from runtime.pictures.watch import arriving_pictures, pictures_now

        # Before PATHS are walked: what arrives meanwhile may be judged twice, but is never missed.
        known = pictures_now(self._watched, recursive=self._recursive, all_files=self._all_files)
        yield from pictures
        yield from arriving_pictures(
            self._watched, known, recursive=self._recursive, all_files=self._all_files
        )


def _stdin() -> IO[bytes]:
    if sys.stdin is None:
        raise UsageError("- reads names from standard input, which is closed; open it, or name the files")
    # Raw: a thread that waits inside a buffered reader would hold its lock when the process ends. Blocking:
    # otherwise a moment without names would look like their end.
    os.set_blocking(sys.stdin.fileno(), True)
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
