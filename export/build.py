"""The main job: a run or an ONNX file becomes a checked bundle with its engines."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle.golden import synthetic_mosaics, write_golden
from export.bundle.writer import BundleWriter
from export.engine.builder import require_buildable
from export.engine.naming import slug_from_text
from export.engine.options import BuildOptions
from export.engines import add_engines
from export.graph.rules import check_rules
from export.onnx_checks import check_contract, check_structure, opset_version
from export.onnx_files import load_model
from export.parity.batches import check_batch_sizes
from export.parity.compare import HopReport, Outputs
from export.parity.fp16_graph import fp16_loader_check
from export.parity.limits import own_limits
from export.precision.conversion import fp16_from_fp32
from export.precision.report import PrecisionReport
from export.source import ONNX, source_kind
from export.steps.clock import Phase, PhaseClock
from export.steps.graph import SourceFacts, write_graph
from export.versions import source_commit, tool_versions
from runtime.backends.onnx_session import OnnxSession
from runtime.console import logger
from runtime.errors import ParityError, UsageError
from runtime.manifest import (
    GOLDEN_NAME,
    MODEL_FP16_NAME,
    MODEL_NAME,
    PARITY_FOLDER,
    SCHEMA_VERSION,
    EngineEntry,
    graph_json,
)
from runtime.spec import CLASSES, Preprocessing
from runtime.tolerances import TOLERANCES

# Besides the profile's own sizes: a graph with the batch frozen inside is right at one size only.
CHECKED_BATCHES = (1, 2, 3, 8)
# From this many weights on, numbers are compared on four mosaics at three sizes: a large tower takes seconds
# for each of them on a CPU.
LARGE_PARAMETERS = 100_000_000
LARGE_BATCHES, LARGE_COUNT = (1, 2, 3), 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle is asked for.

    Attributes:
        backends: "onnxruntime", "tensorrt", "tensorrt-rtx".
        engine: options of TensorRT engines; its profile also bounds onnxruntime.
        golden: mosaics uint8 ``[N, 224, 224, 3]`` of the caller's; None takes synthetic ones.
        command: the options as given, without paths, for the provenance.
        name: of the model inside engine file names; "" takes the backbone's.
    """

    backends: tuple[str, ...] = ("onnxruntime",)
    engine: BuildOptions = field(default_factory=BuildOptions)
    golden: NDArray[np.uint8] | None = None
    command: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class BundleReport:
    """What was built: the folder, the engines with their state, precision, parity hops, time of each step."""

    bundle: Path
    engines: tuple[tuple[EngineEntry, str], ...]
    precision: PrecisionReport
    hops: tuple[HopReport, ...]
    phases: tuple[Phase, ...]


def build_bundle(source: Path, output: Path, options: BundleOptions) -> BundleReport:
    """Builds a bundle; nothing is published unless every check that could run has passed.

    Args:
        source: a run's folder, the authors' .pth, or an ONNX file that follows the contract.
        output: folder of the bundle.
        options: backends and engine options.

    Raises:
        ParityError: the ONNX graph disagrees with its reference.
        GateFailedError: an FP16 engine would not be FP16.
        EngineBuildError: a graph or an engine cannot be built.
        MissingDependencyError: a backend asked for is not installed.
        UsageError: the output cannot be written or is no bundle, or the disk is full.
    """
    for backend in options.backends:
        if backend != "onnxruntime":
            require_buildable(options.engine, backend=backend)
    try:
        return _build(source, output, options)
    except OSError as err:
        if err.errno not in _NO_ROOM:
            raise
        raise UsageError(
            f"{output}: cannot be written ({err.strerror}); free space or name another folder"
        ) from err


def _build(source: Path, output: Path, options: BundleOptions) -> BundleReport:
    clock = PhaseClock()
    golden = synthetic_mosaics() if options.golden is None else options.golden
    with BundleWriter(output) as writer:
        model_path, half_path = writer.path(MODEL_NAME), writer.path(MODEL_FP16_NAME)
        facts, reference = write_graph(source, model_path, golden, clock)
        with clock.phase("check the FP32 graph"):
            embed_dim, opset = _check_graph(model_path, is_ours=source_kind(source) != ONNX)
        write_golden(writer.path(GOLDEN_NAME), golden, *reference)
        with clock.phase("FP32 graph against its reference", is_numeric=True):
            hops = _fp32_hops(model_path, golden, reference, facts, options, embed_dim)
        _require_passed(hops)
        with clock.phase("write and check the FP16 graph"):
            precision = fp16_from_fp32(model_path, half_path, options.engine.policy)
        logger.info(
            "%s: %.1f %% of weighted layers in FP16, %d casts",
            MODEL_FP16_NAME,
            100 * precision.fp16_share,
            precision.casts,
        )
        with clock.phase("FP16 graph against its reference", is_numeric=True):
            limits = own_limits("fp16")
            typed = fp16_loader_check(half_path, golden, reference, decision=facts.decision, limits=limits)
        _require_passed([typed])
        hops.append(typed)
        engines = []
        slug = slug_from_text(options.name or str(facts.backbone["name"]))
        for backend in options.backends:
            with clock.phase(f"{backend} engine"):
                engines += add_engines(writer, backend, slug, options.engine)
        _write_parity(writer.path(f"{PARITY_FOLDER}/parity.json"), hops, facts.reference_name)
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
            },
            "engines": [entry.to_json() for entry, _state in engines],
        }
        with clock.phase("hash, sync and publish"):
            bundle = writer.commit(content)
    for phase in clock.phases:
        logger.debug("%s: %.1f s", phase.name, phase.seconds)
    logger.info(
        "decision: threshold %.6g, temperature %.4g, %s",
        facts.decision.threshold,
        facts.decision.temperature,
        "calibrated" if facts.calibrated else "not calibrated (python -m train calibrate sets them)",
    )
    return BundleReport(bundle, tuple(engines), precision, tuple(hops), tuple(clock.phases))


def _check_graph(path: Path, *, is_ours: bool) -> tuple[int, int]:
    """Checks a written graph and returns its embedding's width and its opset."""
    model = load_model(path, weights=False)
    embed_dim, opset = check_contract(model), opset_version(model)
    check_structure(path)
    blocks = f", {check_rules(model)} blocks" if is_ours else ""
    logger.info("%s: opset %d, embedding %d%s, checked", path.name, opset, embed_dim, blocks)
    return embed_dim, opset


def _fp32_hops(
    path: Path,
    golden: NDArray[np.uint8],
    reference: Outputs,
    facts: SourceFacts,
    options: BundleOptions,
    embed_dim: int,
) -> list[HopReport]:
    profile = options.engine.profiles[0]
    sizes, all_at, count = {*CHECKED_BATCHES, *profile}, profile[1], len(golden)
    if facts.parameters > LARGE_PARAMETERS:
        sizes, all_at, count = {*LARGE_BATCHES}, LARGE_BATCHES[0], min(LARGE_COUNT, count)
    with OnnxSession(path, device="cpu", embed_dim=embed_dim, profile=(1, *profile[1:])) as session:
        return check_batch_sizes(
            session,
            golden[:count],
            (reference[0][:count], reference[1][:count]),
            tuple(sorted(size for size in sizes if size <= profile[2])),
            all_at=all_at,
            decision=facts.decision,
            limits=own_limits("fp32"),
        )


def _require_passed(hops: list[HopReport]) -> None:
    for hop in hops:
        logger.info("%s", hop.line())
    failed = [hop.line() for hop in hops if not hop.passed]
    if failed:
        raise ParityError(f"nothing is published, a graph disagrees with its reference: {failed[0]}")


def _write_parity(path: Path, hops: list[HopReport], reference: str) -> None:
    report = {"schema": 1, "reference": reference, "hops": [hop.to_json() for hop in hops]}
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
