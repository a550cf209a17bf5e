"""A change to a bundle in its place: its commit point, and undoing or completing one that was interrupted.

The manifest in force decides: of what the journal of a staging folder names, it keeps what it lists.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.bundle.lock import bundle_lock
from runtime.bundle.engine_journal import STAGING_PREFIX, journaled_engines, staging_folders
from runtime.bundle.manifest import (
    ENGINES_FOLDER,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PARITY_FOLDER,
    Manifest,
    parse_manifest,
)
from runtime.errors import ManifestError, UsageError
from runtime.files import sync_folder


@contextmanager
def staged_change(bundle: Path) -> Iterator[Path]:
    """Yields a staging folder for a new manifest, which replaces the bundle's when the body is done.

    Only for a caller that holds the bundle's lock. What the body raises leaves the manifest as it was.

    Raises:
        UsageError: the bundle cannot be written.
    """
    staging = bundle / PARITY_FOLDER / f"{STAGING_PREFIX}{secrets.token_hex(4)}"
    try:
        staging.mkdir(parents=True)
        yield staging
        os.replace(staging / MANIFEST_NAME, bundle / MANIFEST_NAME)
        sync_folder(bundle)
    except OSError as err:
        raise UsageError(
            f"{bundle}: cannot be written ({err.strerror}); free space or check its owner"
        ) from err
    finally:
        # The same work after success, an error and a crash: the manifest in force decides what stays.
        recover_locked(bundle)


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
