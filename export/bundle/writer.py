"""Writing a whole bundle: built beside its place, synced, and put there in one step."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from export.bundle.exchange import exchange, rename_aside
from export.bundle.hashing import file_entry
from export.bundle.lock import bundle_lock
from runtime.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PARITY_FOLDER,
    checked_name,
    manifest_bytes,
    parse_manifest,
)
from runtime.errors import ManifestError, UsageError
from runtime.files import sync_folder

logger = logging.getLogger("dgsnet.export.bundle")


class BundleWriter:
    """Collects the files of a bundle and puts it in place. Use as a context manager.

    Leaving the block without ``commit``, by an error or not, leaves what was there before.

    Args:
        destination: folder of the bundle. Absent, empty, or a bundle that the new one replaces.

    Raises:
        UsageError: on entering, if the destination is something else, its parent is no folder that can be
            written to, or another writer is at work on it.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = Path(os.path.abspath(destination))
        self._id = secrets.token_hex(4)
        self._folder = self._sibling("tmp")
        self._exit = ExitStack()

    def __enter__(self) -> BundleWriter:
        parent = self.destination.parent
        if not self.destination.name or not parent.is_dir():
            raise UsageError(f"{self.destination}: its parent is no folder; make the parent first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"{parent}: cannot be written; name a folder of yours")
        with ExitStack() as stack:
            stack.enter_context(bundle_lock(self.destination))
            self._clear_after_dead_writers()
            _check_replaceable(self.destination)
            self._folder.mkdir()
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def path(self, name: str) -> Path:
        """Returns where to write the file that the bundle will hold as ``name``; its folders exist.

        Raises:
            ManifestError: the name is absolute, leaves the bundle or is not plain.
            UsageError: it is the manifest, which ``commit`` writes.
        """
        if checked_name(name) == MANIFEST_NAME:
            raise UsageError(f"{MANIFEST_NAME} is written by commit, name another file")
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, content: dict[str, Any]) -> Path:
        """Writes the manifest, forces everything to disk and puts the bundle in its place.

        Args:
            content: the manifest without ``files`` and ``digest``.

        Returns:
            The bundle's folder.

        Raises:
            ManifestError: the manifest would not open, or a file is a link or not a regular file.
            UsageError: what is at the destination is no longer something to replace, or the disk is full.
        """
        try:
            self._write_manifest(content)
            _check_replaceable(self.destination)
            self._put_in_place()
            sync_folder(self.destination.parent)
        except OSError as err:
            raise UsageError(
                f"{self.destination}: cannot be written ({err.strerror}); free space or name another folder"
            ) from err
        return self.destination

    def _write_manifest(self, content: dict[str, Any]) -> None:
        names = _file_names(self._folder)
        entries = {
            name: file_entry(self._folder / name) for name in names if name.split("/")[0] != PARITY_FOLDER
        }
        files = {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in entries.items()}
        (self._folder / MANIFEST_NAME).write_bytes(manifest_bytes({**content, "files": files}))
        for name in (*names, MANIFEST_NAME):
            sync_folder(self._folder / name)
        for root, _folders, _files in os.walk(self._folder):
            sync_folder(Path(root))

    def _put_in_place(self) -> None:
        if not self.destination.is_dir() or not any(self.destination.iterdir()):
            os.rename(self._folder, self.destination)
            return
        if not exchange(self._folder, self.destination):
            aside = self._sibling("old")
            rename_aside(self._folder, self.destination, aside)
            os.rename(aside, self._folder)
        # The old bundle now lies under the temporary name, which leaving the block removes.

    def _sibling(self, kind: str) -> Path:
        return self.destination.parent / f".{self.destination.name}.{kind}-{self._id}"

    def _clear_after_dead_writers(self) -> None:
        """Removes what killed writers left. Only they can have: we hold the lock."""
        pattern = re.compile(rf"\.{re.escape(self.destination.name)}\.(tmp|old)-[0-9a-f]{{8}}")
        for path in sorted(self.destination.parent.iterdir()):
            match = pattern.fullmatch(path.name)
            if match is None or path.is_symlink() or not path.is_dir():
                continue
            if match[1] == "old" and not self.destination.exists():
                logger.warning(
                    "%s: put back the bundle that an interrupted writer had moved aside", self.destination
                )
                os.rename(path, self.destination)
            else:
                logger.info("removed %s, left by an interrupted writer", path.name)
                shutil.rmtree(path)


def _check_replaceable(destination: Path) -> None:
    """Refuses to replace anything but an empty folder or a bundle that holds nothing of someone else's."""
    if destination.is_symlink():
        raise UsageError(f"{destination}: found a link, expected a folder or nothing; name what it points to")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise UsageError(
            f"{destination}: found a file, expected a bundle or nothing; name another destination"
        )
    if not any(destination.iterdir()):
        return
    try:
        with (destination / MANIFEST_NAME).open("rb") as stream:
            listed = parse_manifest(stream.read(MAX_MANIFEST_BYTES + 1)).files
        foreign = [
            name
            for name in _file_names(destination)
            if name not in listed and name != MANIFEST_NAME and name.split("/")[0] != PARITY_FOLDER
        ]
    except (OSError, ManifestError) as err:
        raise UsageError(
            f"{destination}: found a folder that is not a readable bundle, expected a bundle or nothing; it "
            "is left alone: name another destination or remove it yourself"
        ) from err
    if foreign:
        raise UsageError(
            f"{destination}: holds {foreign[0]}, which is not of the bundle and would be lost; move it away"
        )


def _file_names(folder: Path) -> list[str]:
    """Returns the names of all files below a folder, sorted, in the manifest's spelling."""
    names = []
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ManifestError(
                    f"{path.relative_to(folder)}: a link or special file, expected regular files"
                )
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files]
    return sorted(names)
