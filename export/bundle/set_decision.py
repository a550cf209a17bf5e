"""Giving a bundle that is in its place another decision: a new manifest, and nothing else of it changes.

The manifest is staged in ``parity/.dgsnet-tmp-<id>/``, which readers never look into, and replaces the old
one in one step. No file comes or goes, so there is no journal; a crash leaves the staging folder, which the
next change to the bundle removes.
"""

from __future__ import annotations

from pathlib import Path

from export.bundle.lock import bundle_lock
from export.bundle.recovery import bundle_folder, read_manifest, recover_locked, staged_change
from runtime.bundle.manifest import MANIFEST_NAME, Manifest, manifest_bytes
from runtime.decision import Decision
from runtime.errors import SpecError, UsageError
from runtime.files import write_atomically
from runtime.names import printable_name

# Key of the provenance, which a build does not write.
DECISION_SET = "decision_set"


def set_decision(
    bundle: Path,
    decision: Decision,
    *,
    digest: str,
    command: tuple[str, ...],
    calibrated: bool,
    source_sha256: str | None = None,
) -> Manifest:
    """Replaces the decision in a bundle's manifest and says so in its provenance.

    Args:
        bundle: its folder.
        decision: the new one.
        digest: of the manifest that the caller has looked at.
        command: the options as given, without paths.
        calibrated: whether the new threshold and temperature were fitted.
        source_sha256: SHA-256 (hex) of the weights of the run that the decision comes from, if one does.

    Returns:
        The new manifest.

    Raises:
        UsageError: the bundle was changed meanwhile, cannot be written, or another writer is at work.
        ManifestError: its manifest is missing or damaged.
    """
    bundle = bundle_folder(bundle)
    with bundle_lock(bundle):
        recover_locked(bundle)
        manifest = read_manifest(bundle)
        if manifest.digest != digest:
            raise UsageError(f"{bundle}: was changed meanwhile; run it again")
        provenance = dict(manifest.raw["provenance"])
        earlier = provenance.get(DECISION_SET)
        now = manifest.decision.to_json()
        built = earlier.get("built", now) if isinstance(earlier, dict) else now
        provenance[DECISION_SET] = {
            "decision": decision.to_json(),
            "command": list(command),
            "source_sha256": source_sha256,
            "built": built,
        }
        provenance["calibrated"] = calibrated
        content = manifest.raw | {"decision": decision.to_json(), "provenance": provenance}
        with staged_change(bundle) as staging:
            write_atomically(staging / MANIFEST_NAME, manifest_bytes(content))
        return read_manifest(bundle)


def decision_set_by(manifest: Manifest) -> str | None:
    """Returns the command that set the decision in force; None where it is the one of the build.

    A record that states another decision than the manifest's says nothing about it: None.
    """
    record = manifest.raw["provenance"].get(DECISION_SET)
    try:
        stated, command = Decision.from_json(record["decision"]), " ".join(record["command"])
    except (LookupError, TypeError, SpecError):
        return None
    return printable_name(command) if stated == manifest.decision else None
