"""A bundle with another FP16 graph: what is made from that graph is made again, the rest is kept as it is."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from export.bundle.writer import BundleWriter
from export.engine.builder import require_buildable
from export.engine.options import NO_HARDWARE_LEVEL, BuildOptions
from export.engines import StagedEngine, staged_engine
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from export.precision.report import PrecisionReport
from export.steps.engine import build_engine
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import ENGINES_FOLDER, MODEL_FP16_NAME, MODEL_NAME, Manifest
from runtime.bundle.opening import Bundle
from runtime.errors import DgsNetError, MissingDependencyError

logger = logging.getLogger("dgsnet.export.parity")


@dataclass(frozen=True)
class Rebuilt:
    """What was made again.

    Attributes:
        precision: of the conversion.
        engines: the entry before, and the engine that takes its place; None where it was dropped.
    """

    precision: PrecisionReport
    engines: tuple[tuple[EngineEntry, StagedEngine | None], ...]


def is_from_fp16(entry: EngineEntry) -> bool:
    """Tells whether an engine was built from the FP16 graph."""
    return entry.precision == "fp16" and entry.file not in (MODEL_NAME, MODEL_FP16_NAME)


def build_options(entry: EngineEntry, policy: PrecisionPolicy) -> BuildOptions:
    """Returns what an engine is asked for that takes the place of a listed one.

    Limits of memory and of effort are not recorded in a bundle and are the library's own.
    """
    return BuildOptions(
        precision=entry.precision,
        profiles=entry.profiles,
        targets=entry.targets,
        policy=policy,
        batch_1_profile=False,  # where it was built, it is among the profiles
        version_compatible=entry.version_compatible,
        hardware_compatible=entry.hardware_compatible or NO_HARDWARE_LEVEL,
    )


def unbuildable(manifest: Manifest, policy: PrecisionPolicy) -> list[tuple[EngineEntry, str]]:
    """Returns the FP16 engines of a bundle that cannot be built on this machine, each with the reason."""
    found = []
    for entry in filter(is_from_fp16, manifest.engines):
        try:
            require_buildable(build_options(entry, policy), backend=entry.backend)
        except DgsNetError as err:
            found.append((entry, str(err)))
    return found


def require_rebuildable(
    manifest: Manifest, policy: PrecisionPolicy, *, drop_engines: bool
) -> list[EngineEntry]:
    """Returns the engines that will be dropped, or refuses before any work is done.

    Raises:
        MissingDependencyError: an engine cannot be built here, and ``drop_engines`` is not set.
    """
    lacking = unbuildable(manifest, policy)
    if lacking and not drop_engines:
        entry, reason = lacking[0]
        raise MissingDependencyError(
            f"--repair: {entry.file} cannot be built here ({reason}); repair on its machine, or take it out "
            "with --drop-engines and build it there"
        )
    return [entry for entry, _reason in lacking]


def write_candidate(
    source: Bundle, target: Path, policy: PrecisionPolicy, dropped: Sequence[EngineEntry]
) -> Rebuilt:
    """Writes the repaired bundle beside the old one; nothing in it counts as verified before its gate.

    Args:
        source: the bundle, opened.
        target: folder of the candidate.
        policy: of the new FP16 graph.
        dropped: engines that are left out.

    Raises:
        EngineBuildError: the graph or an engine cannot be built.
        GateFailedError: too little of the graph or of an engine would be FP16.
        UsageError: the folder cannot be written.
    """
    manifest = source.manifest
    old = [entry for entry in manifest.engines if is_from_fp16(entry)]
    # A file may be listed for several targets; it goes when its graph goes.
    replaced = {entry.file for entry in old}
    replaced |= {name for name in manifest.files if name.startswith(MODEL_FP16_NAME)}
    with BundleWriter(target) as writer:
        for name in manifest.files:
            if name not in replaced:
                link_or_copy(source.file(name), writer.path(name))
        half = writer.path(MODEL_FP16_NAME)
        precision = fp16_from_fp32(source.file(MODEL_NAME), half, policy)
        engines: list[tuple[EngineEntry, StagedEngine | None]] = []
        for entry in old:
            if entry in dropped:
                engines.append((entry, None))
                continue
            staged = writer.path(f"{ENGINES_FOLDER}/building.engine")
            built = build_engine(half, staged, build_options(entry, policy), backend=entry.backend)
            engine = staged_engine(built, _slug(entry))
            staged.rename(writer.path(engine.entry.file))
            engines.append((entry, dataclasses.replace(engine, path=target / engine.entry.file)))
        kept = [_unverified(entry) for entry in manifest.engines if not is_from_fp16(entry)]
        new = [engine.entry for _entry, engine in engines if engine is not None]
        content = {k: v for k, v in manifest.raw.items() if k not in ("files", "digest")}
        content["engines"] = [entry.to_json() for entry in (*kept, *new)]
        writer.commit(with_policy(content, precision))
    return Rebuilt(precision, tuple(engines))


def with_policy(manifest: dict[str, Any], report: PrecisionReport) -> dict[str, Any]:
    """Returns a copy of a manifest's object that says what its FP16 graph was made with, as a build does."""
    return manifest | {"provenance": manifest["provenance"] | {"precision": report.to_json()}}


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name on the same file system, or copies it; bundles' files are never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _unverified(entry: EngineEntry) -> EngineEntry:
    """Returns an entry as one that the coming gate may open: a failed one is opened by nobody."""
    return dataclasses.replace(entry, verified="not-run") if entry.verified == "failed" else entry


def _slug(entry: EngineEntry) -> str:
    return PurePosixPath(entry.file).name.split(f"_{entry.precision}_")[0]
