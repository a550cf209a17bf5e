"""From graphs to a proposal: candidates are converted, judged by the gate's checks, and narrowed down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.onnx_files import load_model
from export.onnx_weights import data_path
from export.parity.bisect.boundaries import PATCHES, STEM
from export.parity.bisect.drift import HopDrift
from export.parity.bisect.findings import (
    FILE,
    FOUND,
    NOT_FP16,
    NOT_SEARCHED,
    UNFINISHED,
    Proposal,
    found_reason,
)
from export.parity.bisect.judge import Evaluation, Judge, blocks_label
from export.parity.bisect.minimal_set import Blocks, OutOfEvaluationsError, Search
from export.parity.bisect.pictures import MOST_PICTURES
from export.parity.checks import ORIGIN, Check
from export.precision.blocks import blocks_of, number_list
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import WEIGHTED_OPS, PrecisionPolicy
from runtime.console import Progress
from runtime.errors import EngineBuildError, EngineLoadError, GateFailedError, SpecError, UsageError

DEFAULT_EVALUATIONS = 64


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
        """Judges an FP16 graph that is there; one that does not even run fails."""
        return self._judged(fp16, fp16.name, self._policy.fp32_blocks)

    def blocks(self, blocks: Blocks) -> Evaluation:
        """Judges a fresh conversion with these blocks FP32."""
        return self._converted(dataclasses.replace(self._policy, fp32_blocks=blocks), blocks_label(blocks))

    def beside(self, blocks: Blocks, patterns: Sequence[str]) -> Evaluation:
        """Judges a fresh conversion with these blocks, and nodes of these names, FP32."""
        layers = tuple(dict.fromkeys((*self._policy.fp32_layers, *patterns)))
        policy = dataclasses.replace(self._policy, fp32_blocks=blocks, fp32_layers=layers)
        names = ", ".join(repr(pattern) for pattern in patterns)
        return self._converted(policy, f"{blocks_label(blocks)}, nodes {names} too")

    def _converted(self, policy: PrecisionPolicy, label: str) -> Evaluation:
        path = self._scratch / "candidate.onnx"
        try:
            fp16_from_fp32(self._fp32, path, policy)
            return self._judged(path, label, policy.fp32_blocks)
        except (EngineBuildError, GateFailedError) as err:
            return self._keep(_failed(label, policy.fp32_blocks, err))
        except OSError as err:
            raise UsageError(
                f"{self._scratch.parent}: a graph to be tried cannot be written ({err.strerror or err}); "
                "free space there, or name another folder with TMPDIR"
            ) from err
        finally:
            path.unlink(missing_ok=True)
            data_path(path).unlink(missing_ok=True)

    def _judged(self, path: Path, label: str, blocks: Blocks) -> Evaluation:
        try:
            return self._keep(self._judge.evaluate(path, label, blocks))
        except (EngineBuildError, EngineLoadError, SpecError) as err:
            return self._keep(_failed(label, blocks, err))

    def _keep(self, evaluation: Evaluation) -> Evaluation:
        self.evaluations.append(evaluation)
        self._progress.advance(note=evaluation.line())
        return evaluation


def _failed(label: str, blocks: Blocks, err: Exception) -> Evaluation:
    return Evaluation(label, blocks, str(err).removeprefix("candidate.onnx: "), 0, None, 0)


def proposed_blocks(
    fp32: Path,
    fp16: Path,
    judge: Judge,
    policy: PrecisionPolicy,
    drift: HopDrift | None,
    scratch: Path,
    *,
    failed: Sequence[Check],
    most: int = DEFAULT_EVALUATIONS,
) -> Proposal:
    """Looks for a smallest set of FP32 blocks with which the FP16 graph passes.

    Args:
        fp32: the FP32 graph.
        fp16: the bundle's FP16 graph, which has failed the gate.
        judge: of candidates.
        policy: what the bundle's FP16 graph was made with.
        drift: of the FP16 hop, which says where to begin; None begins with the first block.
        scratch: folder for candidates, one at a time.
        failed: what the gate found of the FP16 hop.
        most: how many graphs may be judged.

    Raises:
        UsageError: the policy does not fit the graph, or a candidate cannot be written.
        SpecError, EngineLoadError: the FP32 graph cannot be read.
    """
    nodes = [(node.op_type, node.name) for node in load_model(fp32, weights=False).graph.node]
    order = _suspicious_first(blocks_of(name for _op, name in nodes), drift)
    with Candidates(fp32, judge, policy, scratch, most) as candidates:
        given = candidates.given(fp16)
        of_file = [check for check in failed if check.name in (ORIGIN, "runs")]
        if given.passed and not of_file:
            return _plain(NOT_SEARCHED, _only_in_gate_reason(fp16, given, judge, failed), (), candidates)
        search = Search(candidates.blocks, most - 1)
        try:
            if search.passes(policy.fp32_blocks):
                how = f"fails ({of_file[0].text})" if of_file and of_file[0].name == ORIGIN else "fails"
                reason = (
                    f"{fp16.name} {how} and a fresh conversion of {fp32.name} by the same policy "
                    f"({blocks_label(policy.fp32_blocks)}) passes: the file is at fault, not its precision"
                )
                return _plain(FILE, reason, policy.fp32_blocks, candidates)
            for widest in _widest(order, policy, [name for op, name in nodes if op in WEIGHTED_OPS]):
                if search.passes(widest):
                    return _narrowed(search, widest, candidates)
        except OutOfEvaluationsError:
            reason = f"none found by {most} evaluations that passes; --bisect-evaluations takes more"
            return _plain(NOT_SEARCHED, reason, (), candidates)
        last = candidates.evaluations[-1]
        text = f"even with {last.label} it fails ({last.reason}), so no set of blocks repairs it"
        beside = _beside(candidates, policy, drift, [name for _op, name in nodes], most)
        return _plain(NOT_FP16, f"{text}{beside}", (), candidates)


def _only_in_gate_reason(fp16: Path, given: Evaluation, judge: Judge, failed: Sequence[Check]) -> str:
    text = f"not looked for: {fp16.name} passes on {given.count} pictures and fails the gate on "
    if judge.chosen.is_all:
        return f"{text}the same ({failed[0].name}), where it ran at another batch size"
    return (
        f"{text}all {judge.chosen.total} ({failed[0].name}); look at more, with --bisect-pictures "
        f"{min(judge.chosen.total, MOST_PICTURES)}"
    )


def _widest(
    order: Sequence[int], policy: PrecisionPolicy, weighted: Sequence[str]
) -> Iterator[Sequence[int]]:
    """Yields the largest sets that leave something to be FP16, as an FP16 graph must have.

    That is every block, or where the policy keeps the rest FP32 every block but one: first without the least
    suspicious.
    """
    every = dataclasses.replace(policy, fp32_blocks=tuple(sorted(order)))
    if not all(every.keeps_fp32(name) for name in weighted):
        yield order
        return
    for block in reversed(order):
        yield [one for one in order if one != block]


def _narrowed(search: Search, widest: Sequence[int], candidates: Candidates) -> Proposal:
    try:
        blocks, status = search.minimal(widest), FOUND
    except OutOfEvaluationsError:
        blocks, status = search.best or tuple(sorted(widest)), UNFINISHED
    judged = {one.blocks: one for one in candidates.evaluations[1:]}
    removals = tuple((block, judged.get(tuple(b for b in blocks if b != block))) for block in blocks)
    reason = found_reason(blocks, is_minimal=status == FOUND)
    return Proposal(status, reason, blocks, tuple(candidates.evaluations), removals)


def _plain(status: str, reason: str, blocks: Blocks, candidates: Candidates) -> Proposal:
    return Proposal(status, reason, blocks, tuple(candidates.evaluations), ())


def _suspicious_first(every: Sequence[int], drift: HopDrift | None) -> list[int]:
    if drift is None:
        return list(every)
    known = [number for name in drift.by_error() for number in blocks_of([f"{name}/"])]
    return [number for number in known if number in every] + [n for n in every if n not in known]


def _beside(
    candidates: Candidates, policy: PrecisionPolicy, drift: HopDrift | None, nodes: Sequence[str], most: int
) -> str:
    """Tries the parts at fault outside of the blocks beside those inside; returns what that came to."""
    over = [] if drift is None else [part.part for part in drift.parts if part.is_over]
    blocks = set(policy.fp32_blocks) | set(blocks_of(f"{part}/" for part in over))
    # The patch embedding's result stays as large until the norm that ends the stem.
    outside = dict.fromkeys(STEM if part == PATCHES else part for part in over if not blocks_of([f"{part}/"]))
    patterns = [
        f"{part}/*"
        for part in outside
        if any(name.startswith(f"{part}/") and not policy.keeps_fp32(name) for name in nodes)
    ]
    if not patterns or len(candidates.evaluations) >= most:
        return ": FP16 inside the blocks is not the only fault"
    tried = candidates.beside(tuple(sorted(blocks)), patterns)
    if not tried.passed:
        return f"; neither does {tried.label} ({tried.reason})"
    words = [f"--fp32-blocks {number_list(tried.blocks).replace(' ', '')}"] if tried.blocks else []
    words += [f"--fp32-layers '{pattern}'" for pattern in patterns]
    return f"; {tried.label} passes: build it again with {' '.join(words)}"
