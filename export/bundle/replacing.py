"""What a new bundle takes from an old one in its place: engines that the new build does not make again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.bundle.recovery import read_manifest
from export.bundle.set_decision import decision_set_by
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import ENGINES_FOLDER, Manifest
from runtime.errors import ManifestError, UsageError


@dataclass(frozen=True)
class PlannedEngine:
    """An engine file that a build is going to make.

    Attributes:
        backend: "tensorrt" or "tensorrt-rtx".
        precision: "fp16" or "fp32".
        targets: architectures, ``sm_<NN>``.
        profiles: (min, opt, max) batch sizes.
    """

    backend: str
    precision: str
    targets: tuple[str, ...]
    profiles: tuple[tuple[int, int, int], ...]

    def stands_for(self, entry: EngineEntry) -> bool:
        """Whether it runs wherever an old engine ran, on the same backend and in the same precision."""
        return (
            (self.backend, self.precision) == (entry.backend, entry.precision)
            and set(entry.targets) <= set(self.targets)
        )  # fmt: skip


def engines_lost(destination: Path, planned: Sequence[PlannedEngine]) -> list[EngineEntry]:
    """Returns the engine files of the bundle at ``destination`` that a build over it would not make again.

    The entries of onnxruntime are no files, and what failed its gate is run by nobody: neither is a loss. Of
    several engines that one new engine stands for, those of another batch range are.

    Args:
        destination: a bundle, or anything else, which holds no engines; the writer judges what it is.
        planned: what the build makes.
    """
    manifest = _manifest(destination)
    entries = () if manifest is None else manifest.engines
    left = [e for e in entries if e.file.startswith(f"{ENGINES_FOLDER}/") and e.verified != "failed"]
    for engine in planned:
        alike = [entry for entry in left if engine.stands_for(entry)]
        again = alike if len(alike) == 1 else [e for e in alike if e.profiles == engine.profiles]
        left = [entry for entry in left if entry not in again]
    return left


def decision_lost(destination: Path) -> str | None:
    """Returns the command that set the decision of a bundle, which a build over it does not know.

    None where it has the decision of its build, or is no bundle.
    """
    manifest = _manifest(destination)
    return None if manifest is None else decision_set_by(manifest)


def require_engines_kept(destination: Path, planned: Sequence[PlannedEngine]) -> None:
    """Refuses to build over engines that would be gone afterwards.

    Raises:
        UsageError: it names them.
    """
    lost = list(dict.fromkeys(entry.file for entry in engines_lost(destination, planned)))
    if lost:
        raise UsageError(
            f"{destination}: holds {', '.join(lost)}, which this build does not make again; name another "
            "folder, or replace the whole bundle with --overwrite"
        )


def _manifest(destination: Path) -> Manifest | None:
    try:
        return read_manifest(destination)
    except (OSError, ManifestError):
        return None
