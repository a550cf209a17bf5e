"""Undoing or completing a change to a bundle in its place that was interrupted.

The manifest in force decides: of what the journal of a staging folder names, it keeps what it lists.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from export.bundle.lock import bundle_lock
from runtime.bundle.engine_journal import journaled_engines, staging_folders
from runtime.bundle.manifest import (
    ENGINES_FOLDER,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PARITY_FOLDER,
    Manifest,
    parse_manifest,
)
from runtime.errors import ManifestError
from runtime.files import sync_folder


def recover(bundle: Path) -> list[str]:
    """Removes what an interrupted change left in a bundle and returns the names of removed engines.

    Raises:
        UsageError: another writer is at work.
        ManifestError: the bundle's manifest is missing or damaged.
    """
    folder = bundle_folder(bundle)
    with bundle_lock(folder):
        return recover_locked(folder)


def recover_locked(bundle: Path) -> list[str]:
    """Does ``recover`` for a caller that holds the bundle's lock."""
    parity = bundle / PARITY_FOLDER
    if parity.is_symlink() or not parity.is_dir():
        return []
    removed = []
    for staging in staging_folders(bundle):
        listed = read_manifest(bundle).files
        for name in journaled_engines(staging):
            if name not in listed and (bundle / name).is_file():
                (bundle / name).unlink()
                removed.append(name)
        if removed:
            sync_folder(bundle / ENGINES_FOLDER)
        shutil.rmtree(staging)
    if not any(parity.iterdir()):
        parity.rmdir()
    return removed


def bundle_folder(bundle: Path) -> Path:
    """Returns the bundle's folder, links resolved.

    Raises:
        ManifestError: there is no manifest in it.
    """
    folder = bundle.resolve()
    if not (folder / MANIFEST_NAME).is_file():
        raise ManifestError(f"{bundle}: found no {MANIFEST_NAME} there, expected the folder of a bundle")
    return folder


def read_manifest(bundle: Path) -> Manifest:
    """Returns the manifest in force.

    Raises:
        ManifestError: it is damaged.
    """
    with (bundle / MANIFEST_NAME).open("rb") as stream:
        return parse_manifest(stream.read(MAX_MANIFEST_BYTES + 1))
