"""The facts of a bundle: its contract, its decision, and every file with the hash that it really has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.bundle.build_figures import BuildFigures, read_build_figures
from export.bundle.set_decision import decision_set_by
from export.inspect.hashes import hashed_files
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import Manifest
from runtime.bundle.opening import open_bundle
from runtime.names import printable_name

_STATES = {
    "passed": "verified",
    "failed": "failed its verification: not run",
    "not-run": "built, never run",
}


def bundle_facts(path: Path) -> dict[str, Any]:
    """Returns what a bundle holds. A file that differs from the manifest is shown so: verify is what judges.

    Raises:
        ManifestError: the manifest is missing, damaged or newer, or a file is missing, unlisted or of another
            size.
        OSError: a file cannot be read.
    """
    with open_bundle(path, verify="off") as opened:
        manifest, folder = opened.manifest, opened.path
    names = sorted(manifest.files)
    files = [
        {
            "name": name,
            "size": found.size,
            "sha256": found.sha256,
            "listed_sha256": manifest.files[name].sha256,
            "intact": found == manifest.files[name],
        }
        for name, found in zip(names, hashed_files([folder / name for name in names]), strict=True)
    ]
    raw, figures = manifest.raw, read_build_figures(folder, manifest)
    return {
        "schema": 1,
        "kind": "bundle",
        "path": printable_name(str(path)),
        "digest": manifest.digest,
        "contract": raw["graph"],
        "preprocessing": manifest.preprocessing.to_json(),
        "decision": {
            **manifest.decision.to_json(),
            "boundary_logit": manifest.decision.boundary_logit,
            "set_by": decision_set_by(manifest),
        },
        "classes": raw["classes"],
        "tolerances": manifest.tolerances,
        "backbone": raw["backbone"],
        "golden": raw["golden"],
        "provenance": raw["provenance"],
        "files": files,
        "engines": [_engine(entry, manifest, files, figures.get(entry.file)) for entry in manifest.engines],
    }


def _engine(
    entry: EngineEntry, manifest: Manifest, files: list[dict[str, Any]], figures: BuildFigures | None
) -> dict[str, Any]:
    intact = next(file["intact"] for file in files if file["name"] == entry.file)
    size = manifest.files[entry.file].size
    state = _STATES[entry.verified] if intact else "its file differs from the manifest"
    took = {
        "build_seconds": None if figures is None else figures.seconds,
        "build_peak_bytes": None if figures is None else figures.peak_bytes,
    }
    return entry.to_json() | took | {"size": size, "intact": intact, "state": state}
