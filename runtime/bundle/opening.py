"""Opening a bundle: manifest, listing and sizes at once, hashes in the background. Never writes into it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.bundle.engine_journal import journaled_engines, staging_folders
from runtime.bundle.manifest import (
    ENGINES_FOLDER,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PARITY_FOLDER,
    Manifest,
    checked_name,
    parse_manifest,
)
from runtime.bundle.verification import Verification
from runtime.cache import cache_folder
from runtime.errors import ManifestError
from runtime.names import printable_name

# A hostile folder could hold any number of files; a real bundle holds some dozens.
_MAX_ENTRIES = 100_000
_MAX_CHANGES = 5
_MAX_MESSAGE = 1500
# Not "cp -rL BUNDLE FOLDER": mounts of clusters hold every file twice, once below a hidden folder.
_HOW_TO_COPY = "copy the bundle with its links resolved: mkdir FOLDER && cp -rL BUNDLE/* FOLDER/"


class Bundle:
    """An opened bundle. Use as a context manager, or call ``close``.

    Attributes:
        path: its folder, absolute, links resolved.
        manifest: the checked manifest.
        verification: the hashing in the background.
    """

    def __init__(self, path: Path, manifest: Manifest, verification: Verification) -> None:
        self.path = path
        self.manifest = manifest
        self.verification = verification

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def file(self, name: str) -> Path:
        """Returns the path of a listed file.

        Raises:
            ManifestError: the manifest does not list it.
        """
        if checked_name(name) not in self.manifest.files:
            raise ManifestError(f"{self.path}: the manifest does not list {name}")
        return self.path / name

    def join(self) -> None:
        """Waits until the hashes are checked; call before the first verdict.

        Raises:
            ManifestError: a file differs from what the manifest says.
        """
        self.verification.join()

    def close(self) -> None:
        """Stops the background hashing."""
        self.verification.cancel()


def open_bundle(
    path: str | os.PathLike[str], *, verify: str = "cached", cache_dir: str | os.PathLike[str] | None = None
) -> Bundle:
    """Opens a bundle: digest of the manifest first, then names and sizes, then hashes in a thread.

    Args:
        path: the bundle's folder.
        verify: "full", "cached" or "off"; see ``Verification``.
        cache_dir: where passed hashes are remembered; see ``cache_folder``.

    Raises:
        ManifestError: not a bundle, or one with a missing, unlisted, linked or wrong-sized file, or with a
            manifest that is damaged, hostile or newer than this version.
        UsageError: ``verify`` is none of the three.
    """
    folder = _bundle_folder(path)
    manifest = _checked_manifest(folder)
    return Bundle(folder, manifest, Verification(folder, manifest.files, verify, cache_folder(cache_dir)))


def _bundle_folder(path: str | os.PathLike[str]) -> Path:
    name = printable_name(os.fspath(path))
    try:
        folder = Path(path).resolve(strict=True)
    except FileNotFoundError as err:
        raise ManifestError(f"{name}: no such folder; check the path of the bundle") from err
    except (OSError, RuntimeError, ValueError) as err:
        raise ManifestError(f"{name}: cannot be opened ({err}); check the path of the bundle") from err
    if not folder.is_dir():
        raise ManifestError(f"{name}: found a file, expected the folder of a bundle")
    return folder


def _checked_manifest(folder: Path) -> Manifest:
    for _attempt in range(_MAX_CHANGES):
        content = _manifest_content(folder)
        try:
            manifest = parse_manifest(content)
            _check_listing(folder, manifest)
            return manifest
        except ManifestError as err:
            # Somebody who added an engine between the two looks is no damage: look again.
            if _manifest_content(folder) == content:
                text = str(err)
                raise ManifestError(_shown(text if str(folder) in text else f"{folder}/{text}")) from err
    raise ManifestError(f"{folder}: its manifest changed {_MAX_CHANGES} times while it was opened; try again")


def _manifest_content(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ManifestError(
                f"{path}: found a link or special file, expected a regular file; {_HOW_TO_COPY}"
            )
        with open(path, "rb") as stream:
            return stream.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as err:
        raise ManifestError(f"{folder}: holds no {MANIFEST_NAME}, so it is not a bundle") from err
    except OSError as err:
        raise ManifestError(f"{path}: cannot be read ({err.strerror}); check its permissions") from err


def _check_listing(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if name == MANIFEST_NAME or name.split("/")[0] == PARITY_FOLDER:
            raise ManifestError(f"{folder}: the manifest lists {name}, which it must not")
    found = {MANIFEST_NAME: 0}
    folders = {ENGINES_FOLDER}
    for name in manifest.files:
        parts = name.split("/")[:-1]
        folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    for name, size in _walk(folder, "", folders):
        found[name] = size
        if len(found) > _MAX_ENTRIES:
            raise ManifestError(f"{folder}: found over {_MAX_ENTRIES} files, which no bundle holds")
    del found[MANIFEST_NAME]
    missing = sorted(manifest.files.keys() - found.keys())
    if missing:
        raise ManifestError(f"{folder}: {_some(missing)} missing; get the bundle again or rebuild it")
    unlisted = sorted(found.keys() - manifest.files.keys() - _on_their_way(folder))
    if unlisted:
        raise ManifestError(
            f"{folder}: {_some(unlisted)} not listed in the manifest; remove what does not belong in it, or "
            "put the bundle into a folder of its own"
        )
    for name, entry in manifest.files.items():
        if found[name] != entry.size:
            raise ManifestError(
                f"{folder / name}: found {found[name]} bytes, the manifest says {entry.size}; the file is "
                "truncated or was changed: get the bundle again or rebuild it"
            )


def _on_their_way(folder: Path) -> set[str]:
    """Returns engines that an unfinished change names: they are never opened, and no damage."""
    return {name for staging in staging_folders(folder) for name in journaled_engines(staging)}


def _walk(folder: Path, prefix: str, folders: set[str]) -> Iterator[tuple[str, int]]:
    """Yields name and size of every regular file below ``folder``, the parity reports left out.

    A folder that is not among ``folders`` is yielded like a file, with a slash at its end, and not entered.
    """
    try:
        with os.scandir(folder) as entries:
            listing = [(prefix + entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError as err:
        raise ManifestError(f"{folder}: cannot be listed ({err.strerror}); check its permissions") from err
    for name, status in listing:
        if stat.S_ISREG(status.st_mode):
            yield name, status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise ManifestError(
                f"{folder}: {printable_name(name)} is a link or special file, expected regular files and "
                f"folders only; {_HOW_TO_COPY}"
            )
        elif name in folders:
            yield from _walk(folder / name[len(prefix) :], name + "/", folders)
        elif name == PARITY_FOLDER:
            _refuse_links(folder / name)
        else:
            yield name + "/", 0


def _refuse_links(folder: Path) -> None:
    """Reports are neither hashed nor opened here; a link among them would mislead whoever copies them."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(root, name)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ManifestError(
                    f"{folder}: {printable_name(name)} is a link or special file, expected regular files and "
                    "folders only; remove it"
                )


def _shown(message: str) -> str:
    # A hostile manifest puts a megabyte, or a terminal's control characters, where a message repeats it.
    text = printable_name(message)
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."


def _some(names: list[str]) -> str:
    shown = ", ".join(printable_name(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
