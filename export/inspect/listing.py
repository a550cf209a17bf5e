"""Whether a file lies in a bundle, and what that bundle's manifest says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.precision.policy import policy_of_bundle
from runtime.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, parse_manifest
from runtime.errors import ManifestError
from runtime.names import printable_name


def bundle_listing(path: Path, found: FileEntry) -> dict[str, Any] | None:
    """Returns what the manifest of the bundle around a file says, None if no bundle is around it.

    Args:
        path: a file; the bundle is its folder, or the folder above ``engines/``.
        found: size and SHA-256 that the file has.

    Returns:
        bundle, error (why the manifest cannot be used, None if it can), name (as listed, None if it is not),
        intact (size and hash are as listed), engines (the manifest's entries for this file) and policy (what
        stays FP32 in the bundle's FP16 graph; None where the manifest cannot be used).
    """
    folder = path.absolute().parent
    for root in (folder, folder.parent):
        if (root / MANIFEST_NAME).is_file():
            return _listing(root, path.absolute().relative_to(root).as_posix(), found)
    return None


def _listing(root: Path, name: str, found: FileEntry) -> dict[str, Any]:
    listing: dict[str, Any] = {
        "bundle": printable_name(str(root)),
        "error": None,
        "name": None,
        "intact": None,
        "engines": [],
        "policy": None,
    }
    try:
        with (root / MANIFEST_NAME).open("rb") as stream:
            manifest = parse_manifest(stream.read(MAX_MANIFEST_BYTES + 1))
        policy = policy_of_bundle(manifest.raw["provenance"])
    except (ManifestError, OSError) as err:
        return listing | {"error": str(err)}
    if name in manifest.files:
        engines = [entry.to_json() for entry in manifest.engines if entry.file == name]
        listing |= {"name": name, "intact": manifest.files[name] == found, "engines": engines}
    return listing | {"policy": policy.to_json()}
