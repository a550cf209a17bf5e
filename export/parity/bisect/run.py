"""Finding where a bundle's chain breaks, after its gate has run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import CheckpointSource
from export.parity.bisect.drift import HopDrift
from export.parity.bisect.faults import PartFaultError, part_in
from export.parity.bisect.findings import BisectReport, Broken, Proposal, not_searched, passes
from export.parity.bisect.hops import export_drift, fp16_drift
from export.parity.bisect.judge import DEFAULT_BATCH, Judge
from export.parity.bisect.pictures import DEFAULT_COUNT, Chosen, chosen_pictures
from export.parity.bisect.proposal import DEFAULT_EVALUATIONS, proposed_blocks
from export.parity.checks import ORIGIN, Check
from export.parity.forms.form import FP16, MERGED, ONNX_FP32, UNMERGED, run_in_chunks
from export.parity.forms.graph_as_written import GraphAsWritten
from export.parity.outcome import GateReport
from export.parity.statistics.compare import Outputs
from export.precision.policy import policy_of_bundle
from runtime.bundle.engine_entry import MAX_BATCH
from runtime.bundle.manifest import MODEL_FP16_NAME, MODEL_NAME
from runtime.bundle.opening import Bundle, open_bundle
from runtime.errors import EngineBuildError, EngineLoadError, SpecError, UsageError
from runtime.spec import Preprocessing


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
            hops += _looked_at(ONNX_FP32, lambda: export_drift(source, fp32, chosen.mosaics), hops)
        if fp16 is not None:
            half = fp16
            hops += _looked_at(FP16, lambda: fp16_drift(fp32, half, chosen.mosaics), hops)
            hops += _other_file(report, hops)
        proposal = _proposal(opened, checkpoint, report, chosen, hops, options)
    return BisectReport(tuple(hops), proposal, chosen.line(), len(chosen.pictures), report.blame)


def is_fp16_at_fault(report: GateReport) -> bool:
    """Tells whether a gate failed at the FP16 graph and not before it: what another graph may repair."""
    return any(check.hop == FP16 for check in report.failed) and not _failed_before(report)


def _failed_before(report: GateReport) -> list[Check]:
    return [check for check in report.failed if check.hop in (UNMERGED, MERGED, ONNX_FP32)]


def _looked_at(
    key: str, look: Callable[[], HopDrift], before: Sequence[HopDrift | Broken]
) -> list[HopDrift | Broken]:
    """Returns the drift of a hop, or what keeps its graph from running: one broken hop hides no other."""
    try:
        return [look()]
    except PartFaultError as err:
        broken = Broken(err.form, str(err), err.part, err.how)
        if err.form == key:
            return [broken]
        # It is what this hop is compared with that breaks, which the hop before may have said.
        known = [] if any(hop.hop == err.form for hop in before) else [broken]
        return [*known, Broken(key, f"{err.form}, which it is compared with, does not run", "")]
    except (EngineBuildError, EngineLoadError, SpecError) as err:
        return [Broken(key, str(err), part_in(str(err)))]


def _other_file(report: GateReport, hops: Sequence[HopDrift | Broken]) -> list[HopDrift | Broken]:
    """Returns what the files tell of the FP16 graph where its values tell nothing."""
    looked_at = [hop for hop in hops if isinstance(hop, HopDrift) and hop.hop == FP16]
    if not looked_at or looked_at[0].first is not None:
        return []
    texts = [check.text for check in report.failed if check.hop == FP16 and check.name == ORIGIN]
    return [Broken(FP16, text, part_in(text), "which is not the FP32 graph's, rounded") for text in texts]


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
    before = _failed_before(report)
    if before:
        is_known = checkpoint is not None or any(
            hop.hop == ONNX_FP32 if isinstance(hop, Broken) else hop.broken_reference for hop in hops
        )
        hint = "" if is_known else "; --checkpoint RUN says in which part"
        return not_searched(
            f"not looked for: the chain breaks before FP16, at {before[0].hop} ({before[0].name}); no "
            f"precision repairs that{hint}"
        )
    failed = [check for check in report.failed if check.hop == FP16]
    if not failed:
        elsewhere = "" if not report.failed else f"; what failed is {report.blame}, which no block repairs"
        return passes(f"{MODEL_FP16_NAME} passes as it is; no block needs FP32{elsewhere}")
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
            next((hop for hop in hops if isinstance(hop, HopDrift) and hop.hop == FP16), None),
            Path(scratch),
            failed=failed,
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
