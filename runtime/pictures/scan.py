"""From the paths on a command line to the names of pictures. Standard library only.

Nothing is judged here: a name that leads nowhere is passed on, so that it becomes one failed item of the run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from runtime.errors import UsageError
from runtime.names import printable_name

logger = logging.getLogger("dgsnet.scan")

# What is taken out of a folder. A file that is named itself is taken whatever its suffix.
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm",
})  # fmt: skip
# Pictures that need a plug-in of Pillow: taken out of a folder too, so that without it they are errors that
# name it, and not skipped without a word.
_PLUG_IN_SUFFIXES = frozenset({".heic", ".heif"})
_BLOCK_BYTES = 65536
_MAX_NAME_BYTES = 1 << 20


def expand_paths(
    paths: Iterable[str], *, recursive: bool = True, names: IO[bytes] | None = None, nul: bool = False
) -> Iterator[str]:
    """Yields the names of the pictures that the paths stand for, as they are found.

    A folder yields its pictures depth first, each level in the order of the names' bytes; links to folders
    are not followed. Anything else is yielded as it is.

    Args:
        paths: files, folders, or "-" for names on ``names``.
        recursive: whether folders inside folders are entered.
        names: stream that "-" reads, one name a line.
        nul: whether those names end with NUL instead of a line break.
    """
    for path in paths:
        if path == "-" and names is not None:
            for name in read_names(names, nul=nul):
                yield from _expand(name, recursive)
        else:
            yield from _expand(path, recursive)


def read_names(stream: IO[bytes], *, nul: bool = False) -> Iterator[str]:
    """Yields the names on a binary stream as they arrive; empty ones are skipped, any bytes are allowed.

    Raises:
        UsageError: a name has no end.
    """
    separator = b"\0" if nul else b"\n"
    rest = b""
    # read1 gives what is there, so that a slow producer's names are not held back.
    read = getattr(stream, "read1", stream.read)
    while block := read(_BLOCK_BYTES):
        *complete, rest = (rest + block).split(separator)
        yield from (os.fsdecode(name) for name in complete if name)
        if len(rest) > _MAX_NAME_BYTES:
            end = (
                "NUL; leave out -0 if they end with line breaks"
                if nul
                else "line break; add -0 if NUL ends them"
            )
            raise UsageError(f"-: found {_MAX_NAME_BYTES} bytes on standard input without a {end}")
    if rest:
        yield os.fsdecode(rest)


def _expand(path: str, recursive: bool) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    count = 0
    for name in pictures_below(path, recursive=recursive):
        count += 1
        yield name
    if count == 0:
        logger.warning("%s: no pictures found in this folder", printable_name(path))


def pictures_below(folder: str, *, recursive: bool = True) -> Iterator[str]:
    """Yields the pictures of a folder depth first, as ``expand_paths`` does.

    Held in memory: the names still to come of each folder on the way down.
    """
    # A stack of its own: folders nest deeper than Python's recursion goes.
    levels = [_listing(os.fsencode(folder), recursive)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif entry.is_folder:
            levels.append(_listing(entry.path, recursive))
        else:
            yield os.fsdecode(entry.path)


class _Entry(NamedTuple):
    path: bytes
    is_folder: bool


def _listing(folder: bytes, recursive: bool) -> Iterator[_Entry]:
    """Yields the pictures of one folder, and its folders, in the order of the names' bytes."""
    names: list[bytes] = []
    folders: set[bytes] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # Names alone are kept: a directory entry takes several times their memory.
                if entry.is_dir(follow_symlinks=False):
                    if recursive:
                        folders.add(entry.name)
                        names.append(entry.name)
                elif _is_picture_name(entry.name) and not (entry.is_symlink() and os.path.isdir(entry.path)):
                    names.append(entry.name)
    except OSError as err:
        logger.warning("%s: cannot be listed (%s)", printable_name(os.fsdecode(folder)), err.strerror)
        yield _Entry(folder, False)  # it fails as an item of the run, so that the exit code tells
        return
    names.sort(reverse=True)
    while names:
        name = names.pop()
        yield _Entry(os.path.join(folder, name), name in folders)


def _is_picture_name(name: bytes) -> bool:
    suffix = os.fsdecode(os.path.splitext(name)[1]).lower()
    return suffix in SUFFIXES or suffix in _PLUG_IN_SUFFIXES
