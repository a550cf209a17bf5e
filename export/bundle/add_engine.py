"""Adding an engine to a bundle that is already in its place, with one commit point: the new manifest.

Everything is first staged in ``parity/.dgsnet-tmp-<id>/``, which readers never look into:

1. the engine, synced; the new manifest, synced; a journal that names the engine that is added and the ones
   that it replaces;
2. the engine is renamed to its final, unused name below ``engines/``;
3. the staged manifest replaces manifest.json: the commit point;
4. engine files that the new manifest no longer lists are removed; the staging folder goes last.

A crash leaves the journal. ``recover`` in export/bundle/recovery.py then removes those engines of the journal
that the manifest in force does not list, which undoes a crash before 3 and completes one after it. Between 2
and 4 an engine lies in the bundle that its manifest does not list; readers pass over what a journal names,
see runtime/bundle/engine_journal.py.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from export.bundle.build_figures import BuildFigures, read_build_figures, write_build_figures
from export.bundle.hashing import copy_hashed
from export.bundle.lock import bundle_lock
from export.bundle.recovery import bundle_folder, read_manifest, recover_locked, staged_change
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.engine_journal import JOURNAL_NAME, journal_bytes
from runtime.bundle.manifest import (
    ENGINES_FOLDER,
    MANIFEST_NAME,
    PARITY_FOLDER,
    FileEntry,
    Manifest,
    checked_name,
    manifest_bytes,
)
from runtime.errors import UsageError
from runtime.files import sync_folder, write_atomically

logger = logging.getLogger("dgsnet.export.bundle")


def add_engine(
    bundle: Path,
    engine_file: Path,
    entry: EngineEntry,
    *,
    built_from: dict[str, FileEntry],
    figures: BuildFigures | None = None,
) -> EngineEntry:
    """Copies an engine into a bundle and lists it; an entry for the same file name is replaced.

    Args:
        bundle: a bundle's folder.
        engine_file: the engine; it stays where it is.
        entry: what the manifest will say; ``entry.file`` is ``engines/<name>.engine``.
        built_from: the files of the bundle as they were when the engine was built from them.
        figures: what its build took, for parity/build.json.

    Returns:
        The entry as written. A replaced file's name is never used again for other bytes, so the name may
        have got a number: ``<name>-r2.engine``.

    Raises:
        UsageError: the engine file is missing or empty, ``entry.file`` is not below ``engines/``, the bundle
            cannot be written, or another writer is at work.
        ManifestError: the bundle's manifest is missing or damaged, or the new one would not open.
    """
    name = PurePosixPath(checked_name(entry.file))
    if name.parts[:1] != (ENGINES_FOLDER,) or len(name.parts) != 2 or name.suffix != ".engine":
        raise UsageError(f"engine file {entry.file!r}: expected {ENGINES_FOLDER}/<name>.engine")
    if not engine_file.is_file() or not engine_file.stat().st_size:
        raise UsageError(f"{engine_file}: found no engine there, or an empty one; build it again")
    bundle = bundle_folder(bundle)
    with bundle_lock(bundle):
        recover_locked(bundle)
        manifest = read_manifest(bundle)
        for graph in (name for name in manifest.files if PurePosixPath(name).parts[0] != ENGINES_FOLDER):
            if manifest.files[graph] != built_from.get(graph):
                raise UsageError(
                    f"{bundle}: {graph} is not the one that the engine was built from, the bundle was "
                    "replaced meanwhile; build the engine again"
                )
        final = _unused_name(bundle, manifest, name)
        with staged_change(bundle) as staging:
            _stage(staging, manifest, engine_file, replace(entry, file=final), _family(manifest, name))
            (bundle / ENGINES_FOLDER).mkdir(exist_ok=True)
            os.rename(staging / "engine", bundle / final)
            sync_folder(bundle / ENGINES_FOLDER)
            if figures is not None:
                # A name that the manifest will not list, should we be killed now, is passed over.
                known = read_build_figures(bundle, manifest)
                write_build_figures(bundle / PARITY_FOLDER, known | {final: figures})
    return replace(entry, file=final)


def _stage(
    staging: Path, manifest: Manifest, engine_file: Path, entry: EngineEntry, replaced: list[str]
) -> None:
    copied = copy_hashed(engine_file, staging / "engine")
    content: dict[str, Any] = dict(manifest.raw)
    content["files"] = {k: v for k, v in content["files"].items() if k not in replaced}
    content["files"][entry.file] = {"sha256": copied.sha256, "size": copied.size}
    content["engines"] = [e for e in content["engines"] if e["file"] not in replaced] + [entry.to_json()]
    write_atomically(staging / MANIFEST_NAME, manifest_bytes(content))
    write_atomically(staging / JOURNAL_NAME, journal_bytes([entry.file], replaced))
    sync_folder(staging.parent)


def _family(manifest: Manifest, name: PurePosixPath) -> list[str]:
    """Returns the listed files that bear this name, numbered or not."""
    pattern = re.compile(rf"{re.escape(f'{ENGINES_FOLDER}/{name.stem}')}(-r\d+)?\.engine")
    return sorted(file for file in manifest.files if pattern.fullmatch(file))


def _unused_name(bundle: Path, manifest: Manifest, name: PurePosixPath) -> str:
    numbers = [
        int(match[1]) for file in _family(manifest, name) if (match := re.search(r"-r(\d+)\.engine$", file))
    ]
    if not _family(manifest, name) and not (bundle / name).exists():
        return str(name)
    number = max(numbers, default=1) + 1
    while (bundle / f"{name.parent}/{name.stem}-r{number}.engine").exists():
        number += 1
    return f"{name.parent}/{name.stem}-r{number}.engine"
