"""Repairing a bundle: its FP16 graph and engines made again with the proposed blocks FP32, after a gate."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle.lock import bundle_lock
from export.bundle.writer import BundleWriter
from export.checkpoint import CheckpointSource
from export.parity.bisect.findings import Proposal
from export.parity.bisect.latency import Latency, not_run, side_by_side
from export.parity.bisect.rebuild import (
    Rebuilt,
    link_or_copy,
    require_rebuildable,
    write_candidate,
)
from export.parity.bisect.trade_off import EngineChange, Hop, TradeOff
from export.parity.forms.form import ENGINE
from export.parity.gate import GateOptions, bundle_gate
from export.parity.outcome import GateReport
from export.parity.waterfall import COMPARED
from export.precision.overflow import overflow_report
from export.precision.policy import PrecisionPolicy, policy_of_bundle
from export.steps.gate import write_reports
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.golden import read_golden
from runtime.bundle.manifest import MODEL_FP16_NAME, MODEL_NAME, Manifest
from runtime.bundle.opening import Bundle, open_bundle
from runtime.detector import Detector
from runtime.errors import DgsNetError, GateFailedError, ParityError, UsageError

logger = logging.getLogger("dgsnet.export.parity")


@dataclass(frozen=True)
class RepairOptions:
    """How a repaired bundle is judged, which is how the broken one was.

    Attributes:
        limits: arguments of ``gate_limits``.
        gate: options of the gate.
        drop_engines: whether engines that cannot be built here are left out instead of refused.
    """

    limits: dict[str, float | int | None] | None = None
    gate: GateOptions | None = None
    drop_engines: bool = False


def require_repairable(bundle: Path, *, drop_engines: bool) -> None:
    """Refuses a repair that could not be finished, whatever its blocks, before they are looked for.

    Raises:
        MissingDependencyError: an engine cannot be built here, and ``drop_engines`` is not set.
        UsageError: the bundle's parent folder cannot be written to, or somebody else writes the bundle now.
    """
    place = bundle.resolve()
    with BundleWriter(place), open_bundle(bundle) as opened:
        opened.join()
        policy = policy_of_bundle(opened.manifest.raw["provenance"])
        require_rebuildable(opened.manifest, policy, drop_engines=drop_engines)


def repair_bundle(
    bundle: Path,
    checkpoint: CheckpointSource | None,
    data: Path | None,
    before: GateReport,
    proposal: Proposal,
    options: RepairOptions,
) -> tuple[GateReport, TradeOff]:
    """Rebuilds a bundle with the proposed blocks FP32 and puts it in place if it passes its gate.

    The bundle is replaced in one step or left as it is.

    Args:
        bundle: its folder.
        checkpoint: as the gate had it.
        data: as the gate had it.
        before: report of the gate on the bundle as it is.
        proposal: the blocks.
        options: of the gate.

    Returns:
        The gate of the repaired bundle, and what the repair costs and brings.

    Raises:
        GateFailedError: there is nothing to repair with, or the repaired bundle fails: nothing is written.
        MissingDependencyError: an engine cannot be built here.
        UsageError: the bundle was replaced meanwhile, or cannot be written; it is then as it was.
    """
    if not proposal.is_repair:
        raise GateFailedError(f"--repair: nothing is written: {proposal.reason}")
    place = bundle.resolve()
    candidate = place.with_name(f".{place.name}.repair")
    with _told_in_one_line(bundle), ExitStack() as stack:
        stack.enter_context(bundle_lock(candidate.with_name(f"{place.name}.repair")))
        shutil.rmtree(candidate, ignore_errors=True)  # of a repair that was killed: we hold its lock
        stack.callback(shutil.rmtree, candidate, ignore_errors=True)
        opened = stack.enter_context(open_bundle(bundle, verify="full"))
        opened.join()
        if opened.manifest.digest != before.digest:
            raise UsageError(f"{bundle}: was replaced since its gate ran; run it again")
        policy = dataclasses.replace(
            policy_of_bundle(opened.manifest.raw["provenance"]), fp32_blocks=proposal.blocks
        )
        dropped = require_rebuildable(opened.manifest, policy, drop_engines=options.drop_engines)
        rebuilt = write_candidate(opened, candidate, policy, dropped)
        after = bundle_gate(candidate, checkpoint, data, limits=options.limits, options=options.gate)
        _require(after)
        # What lies in the bundle speaks of its own mosaics and shows nobody's pictures.
        stored = after if data is None else bundle_gate(candidate, checkpoint, None, limits=options.limits)
        _require(stored)
        latencies = _latencies(opened, candidate, rebuilt, before)
        digest = _publish(candidate, place, opened.manifest.digest, policy, stored)
        trade_off = _trade_off(opened, digest, place, rebuilt, latencies, (before, after))
    return after, trade_off


@contextmanager
def _told_in_one_line(bundle: Path) -> Iterator[None]:
    """Turns what a full disk or a forbidden folder raises into a message."""
    try:
        yield
    except OSError as err:
        raise UsageError(
            f"--repair: {bundle} is left as it was, its repair cannot be written ({err.strerror or err}); "
            "free space beside it, or check permissions there"
        ) from err


def _require(report: GateReport) -> None:
    if report.failed:
        raise ParityError(
            f"--repair: nothing is written, the repaired bundle fails too: {report.verdict()} "
            f"({report.failed[0].line()})"
        )


def _publish(candidate: Path, place: Path, digest: str, policy: PrecisionPolicy, report: GateReport) -> str:
    """Puts the candidate's files in the bundle's place and returns the digest of the new manifest."""
    with BundleWriter(place) as writer, open_bundle(candidate) as made:
        made.join()
        # We hold the bundle's lock from here on; an engine may have been added while the gate ran.
        with open_bundle(place) as now:
            if now.manifest.digest != digest:
                raise UsageError(f"{place.name}: was changed while its repair was judged; run it again")
        golden = read_golden(made.file(made.manifest.golden_file), made.manifest.embed_dim)
        overflow = overflow_report(made.file(MODEL_NAME), made.file(MODEL_FP16_NAME), golden.images, policy)
        overflow.require()
        for name in made.manifest.files:
            link_or_copy(made.file(name), writer.path(name))
        write_reports(writer, report, overflow)
        content = {k: v for k, v in made.manifest.raw.items() if k not in ("files", "digest")}
        content["engines"] = [_judged(entry, report).to_json() for entry in made.manifest.engines]
        writer.commit(content)
    with open_bundle(place) as published:
        return published.manifest.digest


def _judged(entry: EngineEntry, report: GateReport) -> EngineEntry:
    """Returns an entry that is called verified if the gate has run it, which has passed."""
    keys = [f"{ENGINE} {entry.backend}:{target}" for target in entry.targets]
    ran = any(hop.key in keys and hop.status == COMPARED for hop in report.waterfall.hops)
    return dataclasses.replace(entry, verified="passed") if ran else entry


def _latencies(opened: Bundle, candidate: Path, rebuilt: Rebuilt, before: GateReport) -> list[Latency]:
    golden = read_golden(opened.file(opened.manifest.golden_file), opened.manifest.embed_dim).images
    found = []
    for entry, engine in rebuilt.engines:
        if engine is None:
            found.append(not_run("dropped"))
            continue
        batch = golden[np.arange(entry.profiles[0][1]) % len(golden)]
        found.append(_latency(opened.path, entry, candidate, engine.entry, batch))
    return found


def _latency(
    old: Path, old_entry: EngineEntry, new: Path, new_entry: EngineEntry, images: NDArray[np.uint8]
) -> Latency:
    with ExitStack() as stack:
        try:
            pair = [
                stack.enter_context(
                    Detector.open(folder, entry.backend, engine=Path(entry.file).stem, selftest=False)
                )
                for folder, entry in ((old, old_entry), (new, new_entry))
            ]
            return side_by_side(pair[0].backend, pair[1].backend, images)
        except DgsNetError as err:
            return not_run(str(err))


def _trade_off(
    opened: Bundle,
    digest: str,
    place: Path,
    rebuilt: Rebuilt,
    latencies: Sequence[Latency],
    reports: tuple[GateReport, GateReport],
) -> TradeOff:
    with open_bundle(place) as published:
        manifest = published.manifest
    old = opened.manifest
    changes = []
    for (entry, engine), latency in zip(rebuilt.engines, latencies, strict=True):
        file = "" if engine is None else engine.entry.file
        size = None if engine is None else manifest.files[file].size
        changes.append(EngineChange(entry.file, file, old.files[entry.file].size, size, latency))
    return TradeOff(
        blocks=(_fp32_blocks(old), _fp32_blocks(manifest)),
        graph_bytes=(_graph_bytes(old), _graph_bytes(manifest)),
        hops=(Hop.of(reports[0]), Hop.of(reports[1])),
        engines=tuple(changes),
        digest=digest,
    )


def _graph_bytes(manifest: Manifest) -> int:
    return sum(entry.size for name, entry in manifest.files.items() if name.startswith(MODEL_FP16_NAME))


def _fp32_blocks(manifest: Manifest) -> tuple[int, ...]:
    return policy_of_bundle(manifest.raw["provenance"]).fp32_blocks
