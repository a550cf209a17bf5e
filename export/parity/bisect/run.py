"""Finding where a bundle's chain breaks, after its gate has run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import CheckpointSource
from export.parity.bisect.drift import HopDrift
from export.parity.bisect.findings import BisectReport, Broken, Proposal, not_searched
from export.parity.bisect.hops import export_drift, fp16_drift
from export.parity.bisect.judge import DEFAULT_BATCH, Judge
from export.parity.bisect.pictures import DEFAULT_COUNT, Chosen, chosen_pictures
from export.parity.bisect.proposal import DEFAULT_EVALUATIONS, proposed_blocks
from export.parity.compare import Outputs
from export.parity.forms import FP16, MERGED, ONNX_FP32, UNMERGED, run_in_chunks
from export.parity.graph_as_written import GraphAsWritten
from export.parity.outcome import GateReport
from export.precision.policy import policy_of_bundle
from runtime.bundle import Bundle, open_bundle
from runtime.engine_entry import MAX_BATCH
from runtime.errors import EngineBuildError, EngineLoadError, SpecError, UsageError
from runtime.manifest import MODEL_FP16_NAME, MODEL_NAME
from runtime.spec import Preprocessing

_PART = re.compile(r"\b(block_\d+|preprocess|stem|pool|projection|head)/")


@dataclass(frozen=True)
class BisectOptions:
    """What looking for the place is asked for.

    Attributes:
        pictures: how many are looked at part by part and judged, at most.
        evaluations: how many FP16 graphs are judged, at most.
        scratch: folder for one candidate graph at a time; None takes the system's.
    """

    pictures: int = DEFAULT_COUNT
    evaluations: int = DEFAULT_EVALUATIONS
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.evaluations < 3:
            raise UsageError(
                f"bisect: found {self.pictures} pictures and {self.evaluations} evaluations, expected at "
                "least 1 and 3"
            )


def bisect_bundle(
    bundle: Path,
    checkpoint: CheckpointSource | None,
    report: GateReport,
    *,
    options: BisectOptions | None = None,
) -> BisectReport:
    """Looks for the part where a bundle's chain breaks, and for the blocks to keep FP32.

    Args:
        bundle: its folder.
        checkpoint: as the gate had it; None leaves out PyTorch against the FP32 graph.
        report: of the gate on this bundle, whose pictures and limits hold.
        options: None takes the defaults.

    Raises:
        UsageError: the bundle is not the one that the gate looked at.
        DataError: a picture can no longer be read.
        ManifestError, MissingDependencyError: as the gate raises them.
    """
    options = options or BisectOptions()
    with open_bundle(bundle) as opened:
        opened.join()
        if opened.manifest.digest != report.digest:
            raise UsageError(f"{bundle}: was replaced since its gate ran; run it again")
        preprocessing = Preprocessing() if checkpoint is None else checkpoint.preprocessing
        chosen = chosen_pictures(report, preprocessing, options.pictures)
        fp32 = opened.file(MODEL_NAME)
        fp16 = opened.file(MODEL_FP16_NAME) if MODEL_FP16_NAME in opened.manifest.files else None
        hops: list[HopDrift | Broken] = []
        if checkpoint is not None:
            source = checkpoint
            hops.append(_looked_at(ONNX_FP32, lambda: export_drift(source, fp32, chosen.mosaics)))
        if fp16 is not None:
            half = fp16
            hops.append(_looked_at(FP16, lambda: fp16_drift(fp32, half, chosen.mosaics)))
        proposal = _proposal(opened, checkpoint, report, chosen, hops, options)
    return BisectReport(tuple(hops), proposal, chosen.line(), len(chosen.pictures))


def _looked_at(key: str, look: Callable[[], HopDrift]) -> HopDrift | Broken:
    """Returns the drift of a hop, or what keeps its graph from running: one broken hop hides no other."""
    try:
        return look()
    except (EngineBuildError, EngineLoadError, SpecError) as err:
        part = _PART.search(str(err))
        return Broken(key, str(err), part[1] if part else "")


def _proposal(
    opened: Bundle,
    checkpoint: CheckpointSource | None,
    report: GateReport,
    chosen: Chosen,
    hops: list[HopDrift | Broken],
    options: BisectOptions,
) -> Proposal:
    if MODEL_FP16_NAME not in opened.manifest.files:
        return not_searched("the bundle holds no FP16 graph")
    before = [check for check in report.failed if check.hop in (UNMERGED, MERGED, ONNX_FP32)]
    if before:
        return not_searched(
            f"not looked for: the chain breaks before FP16, at {before[0].hop} ({before[0].name}); no "
            "precision repairs that"
        )
    fp32, fp16 = opened.file(MODEL_NAME), opened.file(MODEL_FP16_NAME)
    judge = Judge(
        chosen,
        _references(fp32, opened.manifest.embed_dim, checkpoint, chosen),
        report.decision,
        report.limits,
        DEFAULT_BATCH,
    )
    with tempfile.TemporaryDirectory(prefix="dgsnet-bisect-", dir=options.scratch) as scratch:
        return proposed_blocks(
            fp32,
            fp16,
            judge,
            policy_of_bundle(opened.manifest.raw["provenance"]),
            hops[-1],
            Path(scratch),
            most=options.evaluations,
        )


def _references(
    fp32: Path, embed_dim: int, checkpoint: CheckpointSource | None, chosen: Chosen
) -> dict[str, Outputs]:
    with ExitStack() as stack:
        profile = (1, DEFAULT_BATCH, MAX_BATCH)
        session = stack.enter_context(GraphAsWritten(fp32, embed_dim=embed_dim, profile=profile))
        references = {ONNX_FP32: run_in_chunks(session, chosen.mosaics, DEFAULT_BATCH)}
    if checkpoint is not None:
        references[UNMERGED] = checkpoint.reference(chosen.mosaics)
    return references
