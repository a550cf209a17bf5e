"""From the paths on a command line to the names of pictures. Standard library only.

Nothing is judged here: a name that leads nowhere is passed on, so that it becomes one failed item of the run.
"""

from __future__ import annotations

import logging
import os
import re
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
_TAKEN_SUFFIXES = SUFFIXES | {".heic", ".heif"}
# What lies beside pictures on purpose is no picture that somebody would miss.
_COMPANION_SUFFIXES = frozenset({".csv", ".json", ".jsonl", ".md", ".txt", ".xml"})
_SHOWN_NAMES = 3
_BLOCK_BYTES = 65536
_MAX_NAME_BYTES = 1 << 20
# How the bytes of pictures begin; all others that are read have a NUL soon.
_PICTURE_START = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|....ftyp", re.DOTALL)


class LeftOut:
    """The files of walked folders whose suffix is no picture's, but for those that go with pictures."""

    def __init__(self) -> None:
        self._count = 0
        self._names: list[str] = []

    def add(self, name: bytes) -> None:
        """Counts a file, unless it is hidden or a companion."""
        if name.startswith(b".") or _suffix(name) in _COMPANION_SUFFIXES:
            return
        self._count += 1
        if len(self._names) < _SHOWN_NAMES:
            self._names.append(printable_name(os.fsdecode(name)))

    def line(self) -> str | None:
        """Returns what to say of them, None when there were none."""
        if not self._count:
            return None
        shown = ", ".join([*self._names, *(["..."] if self._count > len(self._names) else [])])
        files = (
            "1 file with another suffix" if self._count == 1 else f"{self._count} files with other suffixes"
        )
        return f"{files} left out ({shown}); --all-files judges every file"


def expand_paths(
    paths: Iterable[str],
    *,
    recursive: bool = True,
    all_files: bool = False,
    names: IO[bytes] | None = None,
    nul: bool = False,
    left_out: LeftOut | None = None,
) -> Iterator[str]:
    """Yields the names of the pictures that the paths stand for, as they are found.

    A folder yields its pictures depth first, each level in the order of the names' bytes; links to folders
    are not followed. Anything else is yielded as it is.

    Args:
        paths: files, folders, or "-" for names on ``names``.
        recursive: whether folders inside folders are entered.
        all_files: whether every regular file of a folder counts as a picture.
        names: stream that "-" reads, one name a line.
        nul: whether those names end with NUL instead of a line break.
        left_out: is told of the other files of folders.
    """
    for path in paths:
        found = read_names(names, nul=nul) if path == "-" and names is not None else (path,)
        for name in found:
            if not os.path.isdir(name):
                yield name
                continue
            is_empty = True
            for picture in pictures_below(name, recursive=recursive, all_files=all_files, left_out=left_out):
                is_empty = False
                yield picture
            if is_empty:
                logger.warning("%s: no pictures found in this folder", printable_name(name))


def count_pictures(paths: Iterable[str], *, recursive: bool = True, all_files: bool = False) -> int:
    """Returns how many names ``expand_paths`` would yield now, for paths without "-"; logs nothing."""
    return sum(
        sum(1 for _ in pictures_below(path, recursive=recursive, all_files=all_files, is_quiet=True))
        if os.path.isdir(path)
        else 1
        for path in paths
    )


def read_names(stream: IO[bytes], *, nul: bool = False) -> Iterator[str]:
    """Yields the names on a binary stream as they arrive; empty ones are skipped, any bytes are allowed.

    Raises:
        UsageError: a name has no end, or the stream begins like a picture and not like names.
    """
    separator = b"\0" if nul else b"\n"
    rest = b""
    is_first = True
    # read1 gives what is there, so that a slow producer's names are not held back.
    read = getattr(stream, "read1", stream.read)
    while block := read(_BLOCK_BYTES):
        if is_first:
            _refuse_pictures(block, nul=nul)
            is_first = False
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


def _refuse_pictures(block: bytes, *, nul: bool) -> None:
    # A file may be called GIF89a.gif, but no name goes on as a header does: with control characters.
    allowed = b"\t\n\r\0" if nul else b"\t\n\r"
    if _PICTURE_START.match(block) and any(byte < 32 and byte not in allowed for byte in block[:24]):
        raise UsageError("-: found picture bytes on standard input, expected names; give the file's own name")
    if not nul and b"\0" in block:
        raise UsageError(
            "-: found a NUL byte on standard input, expected names in the encoding of the file system, one a "
            "line; add -0 if NUL ends them"
        )


def pictures_below(
    folder: str,
    *,
    recursive: bool = True,
    all_files: bool = False,
    left_out: LeftOut | None = None,
    is_quiet: bool = False,
) -> Iterator[str]:
    """Yields the pictures of a folder depth first, as ``expand_paths`` does.

    Held in memory: the names still to come of each folder on the way down.
    """

    def listing(path: bytes) -> Iterator[_Entry]:
        try:
            return _entries(path, recursive, all_files, left_out)
        except OSError as err:
            if not is_quiet:
                name = printable_name(os.fsdecode(path))
                logger.warning("%s: cannot be listed (%s)", name, err.strerror)
            # It fails as an item of the run, so that the exit code tells.
            return iter([_Entry(path, False)])

    # A stack of its own: folders nest deeper than Python's recursion goes.
    levels = [listing(os.fsencode(folder))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif entry.is_folder:
            levels.append(listing(entry.path))
        else:
            yield os.fsdecode(entry.path)


class _Entry(NamedTuple):
    path: bytes
    is_folder: bool


def _entries(folder: bytes, recursive: bool, all_files: bool, left_out: LeftOut | None) -> Iterator[_Entry]:
    """Returns the pictures of one folder, and its folders, in the order of the names' bytes."""
    names: list[bytes] = []
    folders: set[bytes] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            # Names alone are kept: a directory entry takes several times their memory.
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    folders.add(entry.name)
                    names.append(entry.name)
            elif _suffix(entry.name) in _TAKEN_SUFFIXES:
                if not (entry.is_symlink() and os.path.isdir(entry.path)):
                    names.append(entry.name)
            elif (all_files or left_out is not None) and entry.is_file():
                if all_files:
                    names.append(entry.name)
                elif left_out is not None:
                    left_out.add(entry.name)
    names.sort(reverse=True)
    return _popped(folder, names, folders)


def _popped(folder: bytes, names: list[bytes], folders: set[bytes]) -> Iterator[_Entry]:
    while names:
        name = names.pop()
        yield _Entry(os.path.join(folder, name), name in folders)


def _suffix(name: bytes) -> str:
    return os.fsdecode(os.path.splitext(name)[1]).lower()
