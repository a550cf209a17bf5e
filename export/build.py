"""The main job: a run or an ONNX file becomes a checked bundle with its engines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle.golden import synthetic_mosaics, write_golden
from export.bundle.writer import BundleWriter
from export.checkpoint import CheckpointSource
from export.engine.builder import require_buildable
from export.engine.naming import slug_from_text
from export.engine.options import BuildOptions
from export.engines import add_engines
from export.onnx_checks import check_contract, check_structure, opset_version
from export.onnx_files import save_model
from export.onnx_source import OnnxSource
from export.parity.batches import check_batch_sizes
from export.parity.compare import HopReport
from export.parity.fp16_graph import fp16_graph_parity
from export.parity.limits import own_limits
from export.precision import PrecisionReport, fp16_from_fp32
from export.source import ONNX, source_kind
from export.versions import source_commit, tool_versions
from runtime.backends.onnx_session import OnnxSession
from runtime.console import logger
from runtime.errors import ParityError
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
    """What was built: the folder, the engines with their state, the precision and every parity hop."""

    bundle: Path
    engines: tuple[tuple[EngineEntry, str], ...]
    precision: PrecisionReport
    hops: tuple[HopReport, ...]


def build_bundle(source: Path, output: Path, options: BundleOptions) -> BundleReport:
    """Builds a bundle; nothing is published unless every check that could run has passed.

    Args:
        source: a run's folder, or an ONNX file that follows the contract.
        output: folder of the bundle.
        options: backends and engine options.

    Raises:
        ParityError: the ONNX graph disagrees with its reference.
        GateFailedError: an FP16 engine would not be FP16.
        EngineBuildError: a graph or an engine cannot be built.
        MissingDependencyError: a backend asked for is not installed.
        UsageError: the output cannot be written or is no bundle.
    """
    for backend in options.backends:
        if backend != "onnxruntime":
            require_buildable(options.engine, backend=backend)
    loaded: CheckpointSource | OnnxSource
    loaded = OnnxSource(source) if source_kind(source) == ONNX else CheckpointSource(source)
    profile = options.engine.profiles[0]
    slug = slug_from_text(options.name or str(loaded.backbone["name"]))
    with BundleWriter(output) as writer:
        model_path = writer.path(MODEL_NAME)
        model = loaded.onnx()
        opset = opset_version(model)
        save_model(model, model_path)
        del model
        embed_dim = check_contract(model_path)
        check_structure(model_path)
        logger.info("%s: opset %d, embedding %d, checked", MODEL_NAME, opset, embed_dim)

        golden = synthetic_mosaics() if options.golden is None else options.golden
        reference = loaded.reference(golden)
        write_golden(writer.path(GOLDEN_NAME), golden, *reference)
        with OnnxSession(model_path, device="cpu", embed_dim=embed_dim, profile=(1, *profile[1:])) as session:
            sizes = sorted({n for n in (*CHECKED_BATCHES, *profile) if n <= profile[2]})
            hops = check_batch_sizes(
                session,
                golden,
                reference,
                tuple(sizes),
                all_at=profile[1],
                decision=loaded.decision,
                limits=own_limits("fp32"),
            )
        _require_passed(hops)
        precision = fp16_from_fp32(model_path, writer.path(MODEL_FP16_NAME), options.engine.policy)
        logger.info(
            "%s: %.1f %% of weighted layers in FP16, %d casts",
            MODEL_FP16_NAME,
            100 * precision.fp16_share,
            precision.casts,
        )
        typed = fp16_graph_parity(
            writer.path(MODEL_FP16_NAME),
            golden,
            reference,
            decision=loaded.decision,
            limits=own_limits("fp16"),
        )
        _require_passed([typed])
        hops.append(typed)
        engines = []
        for backend in options.backends:
            engines += add_engines(writer, backend, slug, options.engine)
        _write_parity(writer.path(f"{PARITY_FOLDER}/parity.json"), hops, loaded.reference_name)
        content = {
            "schema": SCHEMA_VERSION,
            "graph": graph_json(embed_dim, opset),
            "preprocessing": Preprocessing().to_json(),
            "backbone": loaded.backbone,
            "classes": list(CLASSES),
            "decision": loaded.decision.to_json(),
            "tolerances": TOLERANCES,
            "golden": {"file": GOLDEN_NAME, "reference": loaded.reference_name, "count": len(golden)},
            "provenance": {
                "source_sha256": loaded.sha256,
                "calibrated": loaded.calibrated,
                "commit": source_commit(),
                "tools": tool_versions(),
                "command": list(options.command),
            },
            "engines": [entry.to_json() for entry, _state in engines],
        }
        bundle = writer.commit(content)
    logger.info(
        "decision: threshold %.6g, temperature %.4g, %s",
        loaded.decision.threshold,
        loaded.decision.temperature,
        "calibrated" if loaded.calibrated else "not calibrated (python -m train calibrate sets them)",
    )
    return BundleReport(bundle, tuple(engines), precision, tuple(hops))


def _require_passed(hops: list[HopReport]) -> None:
    for hop in hops:
        logger.info("%s", hop.line())
    failed = [hop.line() for hop in hops if not hop.passed]
    if failed:
        raise ParityError(f"nothing is published, a graph disagrees with its reference: {failed[0]}")


def _write_parity(path: Path, hops: list[HopReport], reference: str) -> None:
    report = {"schema": 1, "reference": reference, "hops": [hop.to_json() for hop in hops]}
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
