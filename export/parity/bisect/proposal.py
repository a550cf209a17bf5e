"""From graphs to a proposal: candidates are converted, judged by the gate's checks, and narrowed down."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from export.onnx_files import data_path, load_model
from export.parity.bisect.boundaries import PATCHES
from export.parity.bisect.drift import HopDrift
from export.parity.bisect.findings import (
    FILE,
    FOUND,
    NOT_FP16,
    PASSES,
    UNFINISHED,
    Broken,
    Proposal,
    found_reason,
)
from export.parity.bisect.judge import Evaluation, Judge, blocks_label
from export.parity.bisect.minimal_set import Blocks, OutOfEvaluationsError, Search
from export.precision.blocks import blocks_of
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from runtime.console import Progress
from runtime.errors import EngineBuildError, GateFailedError

DEFAULT_EVALUATIONS = 64
# Where the nodes of a part are not named after it.
_PATTERNS = {PATCHES: "stem/conv"}


class Candidates:
    """Converts and judges sets of FP32 blocks.

    Args:
        fp32: the FP32 graph.
        judge: of FP16 graphs.
        policy: what stays FP32 besides the blocks.
        scratch: folder for one candidate at a time.
        most: how many evaluations are expected at most, for the progress line.
    """

    def __init__(self, fp32: Path, judge: Judge, policy: PrecisionPolicy, scratch: Path, most: int) -> None:
        self.evaluations: list[Evaluation] = []
        self._fp32, self._judge, self._policy, self._scratch = fp32, judge, policy, scratch
        self._progress = Progress("sets of FP32 blocks judged", most)

    def __enter__(self) -> Candidates:
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._progress.total = self._progress.done
        self._progress.__exit__(kind, *rest)

    def given(self, fp16: Path) -> Evaluation:
        """Judges an FP16 graph that is there."""
        return self._keep(self._judge.evaluate(fp16, fp16.name, self._policy.fp32_blocks))

    def blocks(self, blocks: Blocks) -> Evaluation:
        """Judges a fresh conversion with these blocks FP32."""
        policy = dataclasses.replace(self._policy, fp32_blocks=blocks)
        path, label = self._scratch / "candidate.onnx", blocks_label(blocks)
        try:
            fp16_from_fp32(self._fp32, path, policy)
        except (EngineBuildError, GateFailedError) as err:
            return self._keep(Evaluation(label, blocks, str(err), 0, None, 0))
        try:
            return self._keep(self._judge.evaluate(path, label, blocks))
        finally:
            path.unlink()
            data_path(path).unlink(missing_ok=True)

    def _keep(self, evaluation: Evaluation) -> Evaluation:
        self.evaluations.append(evaluation)
        self._progress.advance(note=evaluation.line())
        return evaluation


def proposed_blocks(
    fp32: Path,
    fp16: Path,
    judge: Judge,
    policy: PrecisionPolicy,
    drift: HopDrift | Broken | None,
    scratch: Path,
    *,
    most: int = DEFAULT_EVALUATIONS,
) -> Proposal:
    """Looks for a smallest set of FP32 blocks with which the FP16 graph passes.

    Args:
        fp32: the FP32 graph.
        fp16: the bundle's FP16 graph.
        judge: of candidates.
        policy: what the bundle's FP16 graph was made with.
        drift: of the FP16 hop, which says where to begin; None begins with the first block.
        scratch: folder for candidates, one at a time.
        most: how many graphs may be judged.

    Raises:
        UsageError: the policy does not fit the graph.
        SpecError, EngineLoadError: a graph cannot be read or run.
    """
    every = tuple(blocks_of(node.name for node in load_model(fp32, weights=False).graph.node))
    with Candidates(fp32, judge, policy, scratch, most) as candidates:
        given = candidates.given(fp16)
        if given.passed:
            return _plain(PASSES, f"{fp16.name} passes as it is; no block needs FP32", (), candidates)
        search = Search(candidates.blocks, most - 1)
        if search.passes(policy.fp32_blocks):
            reason = (
                f"{fp16.name} fails and a fresh conversion of {fp32.name} by the same policy "
                f"({blocks_label(policy.fp32_blocks)}) passes: the file is at fault, not its precision"
            )
            return _plain(FILE, reason, policy.fp32_blocks, candidates)
        if not search.passes(every):
            return _plain(NOT_FP16, _not_fp16_reason(candidates.evaluations[-1], drift), (), candidates)
        return _narrowed(search, every, drift, candidates)


def _narrowed(
    search: Search, every: Blocks, drift: HopDrift | Broken | None, candidates: Candidates
) -> Proposal:
    try:
        blocks, status = search.minimal(_suspicious_first(every, drift)), FOUND
    except OutOfEvaluationsError:
        blocks, status = search.best or every, UNFINISHED
    judged = {one.blocks: one for one in candidates.evaluations[1:]}
    removals = tuple((block, judged.get(tuple(b for b in blocks if b != block))) for block in blocks)
    reason = found_reason(blocks, is_minimal=status == FOUND)
    return Proposal(status, reason, blocks, tuple(candidates.evaluations), removals)


def _plain(status: str, reason: str, blocks: Blocks, candidates: Candidates) -> Proposal:
    return Proposal(status, reason, blocks, tuple(candidates.evaluations), ())


def _suspicious_first(every: Blocks, drift: HopDrift | Broken | None) -> list[int]:
    if not isinstance(drift, HopDrift):
        return list(every)
    known = [number for name in drift.by_error() for number in blocks_of([f"{name}/"])]
    return [number for number in known if number in every] + [n for n in every if n not in known]


def _not_fp16_reason(failed: Evaluation, drift: HopDrift | Broken | None) -> str:
    text = f"even with every block in FP32 it fails ({failed.reason}), so no set of blocks repairs it"
    first = drift.first if isinstance(drift, HopDrift) else None
    if first is None or first.part.startswith("block_"):
        return f"{text}: FP16 inside the blocks is not the only fault"
    pattern = _PATTERNS.get(first.part, f"{first.part}/*")
    return f"{text}; the first part at fault is {first.part}: try --fp32-layers '{pattern}'"
