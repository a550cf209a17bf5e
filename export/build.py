"""The main job: a run or an ONNX file becomes a checked bundle with its engines."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle.golden import synthetic_mosaics, write_golden
from export.bundle.replacing import PlannedEngine, decision_lost, engines_lost, require_engines_kept
from export.bundle.writer import BundleWriter
from export.engine.naming import slug_from_text
from export.engine.options import BuildOptions
from export.engines import add_engines, planned_engines
from export.graph.rules import check_rules
from export.onnx_checks import check_contract, check_structure, opset_version
from export.onnx_files import load_model
from export.parity.forms.fp16_graph import fp16_loader_check
from export.parity.limits import own_limits
from export.parity.outcome import GateReport
from export.precision.conversion import fp16_from_fp32
from export.precision.headroom import OverflowReport
from export.precision.overflow import overflow_report
from export.precision.report import PrecisionReport
from export.source import ONNX, RUN, source_kind
from export.steps.clock import Phase, PhaseClock
from export.steps.gate import Staged, judged_entries, run_gate, write_reports
from export.steps.graph import References, SourceFacts, write_graph
from export.versions import source_commit, tool_versions
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import GOLDEN_NAME, MODEL_FP16_NAME, MODEL_NAME, SCHEMA_VERSION, graph_json
from runtime.console import logger
from runtime.errors import ParityError, UsageError
from runtime.names import printable_name
from runtime.spec import CLASSES, Preprocessing
from runtime.tolerances import TOLERANCES

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle is asked for.

    Attributes:
        backends: "onnxruntime", "tensorrt", "tensorrt-rtx".
        engine: options of TensorRT engines; its profile also bounds onnxruntime.
        golden: mosaics uint8 ``[N, 224, 224, 3]`` of the caller's; None takes synthetic ones.
        calibration: mosaics of the caller's for the overflow guard, never stored; None takes the golden ones.
        allow_failed: whether a bundle that fails its gate is written all the same, every engine marked so.
        command: the options as given, without paths, for the provenance.
        name: of the model inside engine file names; "" takes the backbone's.
        overwrite: whether a bundle in the output's place may lose engines that this build does not make.
    """

    backends: tuple[str, ...] = ("onnxruntime",)
    engine: BuildOptions = field(default_factory=BuildOptions)
    golden: NDArray[np.uint8] | None = None
    calibration: NDArray[np.uint8] | None = None
    allow_failed: bool = False
    command: tuple[str, ...] = ()
    name: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class BundleReport:
    """What was built.

    Attributes:
        bundle: its folder.
        engines: the manifest's lines, each with its state in words.
        precision: what the conversion to FP16 did.
        overflow: range of the activations in FP16.
        gate: every form on the golden mosaics.
        phases: time of each step.
    """

    bundle: Path
    engines: tuple[tuple[EngineEntry, str], ...]
    precision: PrecisionReport
    overflow: OverflowReport
    gate: GateReport
    phases: tuple[Phase, ...]

    @property
    def passed(self) -> bool:
        """Whether everything that ran has passed."""
        return self.gate.passed and self.overflow.passed


def build_bundle(source: Path, output: Path, options: BundleOptions) -> BundleReport:
    """Builds a bundle; nothing is published unless every check that could run has passed.

    Args:
        source: a run's folder, the authors' .pth, or an ONNX file that follows the contract.
        output: folder of the bundle.
        options: backends and engine options.

    Raises:
        ParityError: a form of the model disagrees with its reference, and ``allow_failed`` is not set.
        GateFailedError: an FP16 engine would not be FP16, or a value overflows in it.
        EngineBuildError: a graph or an engine cannot be built.
        MissingDependencyError: a backend asked for is not installed.
        UsageError: the output cannot be written, is no bundle, or holds engines that would be lost, or the
            disk is full.
    """
    planned = planned_engines(options.backends, options.engine)
    try:
        return _build(source, output, options, planned)
    except OSError as err:
        if err.errno not in _NO_ROOM:
            raise
        raise UsageError(
            f"{output}: cannot be written ({err.strerror}); free space or name another folder"
        ) from err


def _build(source: Path, output: Path, options: BundleOptions, planned: list[PlannedEngine]) -> BundleReport:
    clock = PhaseClock()
    golden = synthetic_mosaics() if options.golden is None else options.golden
    with BundleWriter(output) as writer:
        # From here on the lock is ours: no engine can come that is not looked at.
        if not options.overwrite:
            require_engines_kept(output, planned)
        lost, set_by = engines_lost(output, planned), decision_lost(output)
        model_path, half_path = writer.path(MODEL_NAME), writer.path(MODEL_FP16_NAME)
        facts, references = write_graph(source, model_path, golden, clock)
        with clock.phase("check the FP32 graph"):
            embed_dim, opset = _check_graph(model_path, is_ours=source_kind(source) != ONNX)
        write_golden(writer.path(GOLDEN_NAME), golden, *references.unmerged)
        with clock.phase("write and check the FP16 graph"):
            precision = fp16_from_fp32(model_path, half_path, options.engine.policy)
        logger.info("%s: %s", MODEL_FP16_NAME, precision.line())
        with clock.phase("FP16 graph: loader check", is_numeric=True):
            _check_loading(half_path, golden, references, facts)
        with clock.phase("FP16 graph: overflow guard", is_numeric=True):
            overflow = _overflow(model_path, half_path, golden, facts, options)
        engines = []
        slug = slug_from_text(options.name or str(facts.backbone["name"]))
        for backend in options.backends:
            with clock.phase(f"{backend} engine"):
                engines += add_engines(writer, backend, slug, options.engine)
        with clock.phase("gate on the golden mosaics", is_numeric=True):
            staged = Staged(facts, references, golden, embed_dim, options.engine.profiles[0])
            gate = run_gate(writer, staged, engines, options.command)
        _show(gate, options)
        write_reports(writer, gate, overflow, engines)
        judged = judged_entries(engines, gate, is_sound=gate.passed and overflow.passed)
        content = {
            "schema": SCHEMA_VERSION,
            "graph": graph_json(embed_dim, opset),
            "preprocessing": Preprocessing().to_json(),
            "backbone": facts.backbone,
            "classes": list(CLASSES),
            "decision": facts.decision.to_json(),
            "tolerances": TOLERANCES,
            "golden": {"file": GOLDEN_NAME, "reference": facts.reference_name, "count": len(golden)},
            "provenance": {
                "source_sha256": facts.sha256,
                "calibrated": facts.calibrated,
                "commit": source_commit(),
                "tools": tool_versions(),
                "command": list(options.command),
                "precision": precision.to_json(),
            },
            "engines": [entry.to_json() for entry, _state in judged],
        }
        with clock.phase("hash, sync and publish"):
            bundle = writer.commit(content)
    for entry in lost:
        logger.info("%s: %s is gone, the build replaced the whole bundle (--overwrite)", output, entry.file)
    if set_by is not None:
        logger.warning("%s: its decision, set by %s, is gone: it has its source's again", output, set_by)
    for phase in clock.phases:
        logger.debug("%s: %.1f s", phase.name, phase.seconds)
    logger.info(
        "decision: threshold %.6g, temperature %.4g, %s",
        facts.decision.threshold,
        facts.decision.temperature,
        "calibrated" if facts.calibrated else _how_to_calibrate(source, output),
    )
    return BundleReport(bundle, tuple(judged), precision, overflow, gate, tuple(clock.phases))


def _how_to_calibrate(source: Path, output: Path) -> str:
    name = printable_name(str(output))
    if source_kind(source) == RUN:
        run = printable_name(str(source))
        return (
            f"not calibrated (python -m train calibrate {run} DATA fits them, python -m export set-decision "
            f"{name} --from {run} puts them in)"
        )
    return f"not calibrated (python -m export set-decision {name} --threshold P sets it)"


def _check_loading(
    half_path: Path, golden: NDArray[np.uint8], references: References, facts: SourceFacts
) -> None:
    limits = own_limits("fp16")
    hop = fp16_loader_check(half_path, golden, references.unmerged, decision=facts.decision, limits=limits)
    logger.info("%s", hop.line())
    if not hop.passed:
        raise ParityError(f"nothing is published, the FP16 graph is not the FP32 one: {hop.line()}")


def _overflow(
    model_path: Path,
    half_path: Path,
    golden: NDArray[np.uint8],
    facts: SourceFacts,
    options: BundleOptions,
) -> OverflowReport:
    images = options.calibration
    if images is None:
        images = golden[: facts.compared(len(golden))]
    report = overflow_report(model_path, half_path, images, options.engine.policy)
    logger.info("%s", report.line())
    for line in report.table():
        logger.debug("%s", line)
    if not options.allow_failed:
        report.require()
    return report


def _show(gate: GateReport, options: BundleOptions) -> None:
    for line in gate.summary():
        logger.info("%s", line)
    if not gate.passed and not options.allow_failed:
        raise ParityError(f"nothing is published, {gate.verdict()} ({gate.failed[0].line()})")


def _check_graph(path: Path, *, is_ours: bool) -> tuple[int, int]:
    """Checks a written graph and returns its embedding's width and its opset."""
    model = load_model(path, weights=False)
    embed_dim, opset = check_contract(model), opset_version(model)
    check_structure(path)
    blocks = f", {check_rules(model)} blocks" if is_ours else ""
    logger.info("%s: opset %d, embedding %d%s, checked", path.name, opset, embed_dim, blocks)
    return embed_dim, opset
