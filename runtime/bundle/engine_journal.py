"""Which engine files are on their way into or out of a bundle right now.

Adding an engine cannot change the files and the manifest in one step. Until both agree, a journal inside
``parity/.dgsnet-tmp-<id>/`` names the files that the manifest does not list yet, or no longer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

from runtime.bundle.manifest import ENGINES_FOLDER, PARITY_FOLDER, checked_name
from runtime.errors import ManifestError

STAGING_PREFIX = ".dgsnet-tmp-"
JOURNAL_NAME = "journal.json"
_MAX_JOURNAL_BYTES = 100_000


def journal_bytes(added: list[str], replaced: list[str]) -> bytes:
    """Returns the journal of a change that adds and replaces these engine files."""
    return json.dumps({"added": added, "replaced": replaced}).encode()


def journaled_engines(staging: Path) -> list[str]:
    """Returns the engine files that one staging folder's journal names; an unfinished journal names none."""
    try:
        with open(staging / JOURNAL_NAME, "rb") as stream:
            journal = json.loads(stream.read(_MAX_JOURNAL_BYTES))
        names = [checked_name(name) for name in (*journal["added"], *journal["replaced"])]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ManifestError):
        return []
    return [name for name in names if PurePosixPath(name).parts[:-1] == (ENGINES_FOLDER,)]


def staging_folders(bundle: Path) -> list[Path]:
    """Returns the staging folders inside a bundle, those of killed writers included."""
    parity = bundle / PARITY_FOLDER
    try:
        with os.scandir(parity) as entries:
            names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [parity / name for name in sorted(names) if name.startswith(STAGING_PREFIX)]
