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
from export.engine.builder import build_engine, require_buildable
from export.engine.naming import engine_file_name, slug_from_text
from export.engine.options import BuildOptions, BuiltEngine
from export.onnx_files import check_contract, check_structure, opset_version, save_model
from export.onnx_source import OnnxSource
from export.parity.batches import check_batch_sizes
from export.parity.compare import HopReport
from export.precision import PrecisionReport, fp16_from_fp32
from export.source import RUN, source_kind
from export.versions import tool_versions
from runtime.backends.onnx_session import OnnxSession
from runtime.console import logger
from runtime.errors import MissingDependencyError, ParityError
from runtime.manifest import (
    ENGINES_FOLDER,
    GOLDEN_NAME,
    MODEL_FP16_NAME,
    MODEL_NAME,
    PARITY_FOLDER,
    SCHEMA_VERSION,
    EngineEntry,
    graph_json,
)
from runtime.spec import CLASSES, Preprocessing
from runtime.tolerances import TOLERANCES, logit_tolerance

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
    loaded = CheckpointSource(source) if source_kind(source) == RUN else OnnxSource(source)
    boundary = loaded.decision.boundary_logit
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
                boundary=boundary,
                tolerance=logit_tolerance(TOLERANCES, "fp32"),
            )
        for hop in hops:
            logger.info("%s", hop.line())
        failed = [hop.line() for hop in hops if not hop.passed]
        if failed:
            raise ParityError(f"the ONNX graph disagrees with its reference: {failed[0]}")

        precision = fp16_from_fp32(model_path, writer.path(MODEL_FP16_NAME), options.engine.policy)
        logger.info(
            "%s: %.1f %% of weighted layers in FP16, %d casts",
            MODEL_FP16_NAME,
            100 * precision.fp16_share,
            precision.casts,
        )
        _require_loadable(writer.path(MODEL_FP16_NAME), golden[:1])
        engines = []
        for backend in options.backends:
            engines += _engines(writer, backend, slug, options.engine)
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
                "tools": tool_versions(),
                "command": list(options.command),
            },
            "engines": [entry.to_json() for entry, _state in engines],
        }
        bundle = writer.commit(content)
    return BundleReport(bundle, tuple(engines), precision, tuple(hops))


def _engines(
    writer: BundleWriter, backend: str, slug: str, options: BuildOptions
) -> list[tuple[EngineEntry, str]]:
    """Returns the manifest's entries of one backend, each with its state in words."""
    if backend == "onnxruntime":
        return [_onnxruntime_entry("cpu", options), _onnxruntime_entry("cuda", options)]
    graph = writer.path(MODEL_FP16_NAME if options.precision == "fp16" else MODEL_NAME)
    staged = writer.path(f"{ENGINES_FOLDER}/building.engine")
    built = build_engine(graph, staged, options, backend=backend)
    name = engine_name(slug, built)
    staged.rename(writer.path(name))
    return [(built.entry(name), state_of(built))]


def _onnxruntime_entry(device: str, options: BuildOptions) -> tuple[EngineEntry, str]:
    import onnxruntime

    # On the CPU the batch hops ran this very file with this very library, or the build has failed.
    ran = device == "cpu"
    entry = EngineEntry(
        file=MODEL_NAME,
        backend="onnxruntime",
        precision="fp32",
        profiles=options.profiles,
        targets=(device,),
        version=onnxruntime.__version__,
        gpu=None,
        driver=None,
        verified="passed" if ran else "not-run",
    )
    return entry, f"{device}: " + ("compared with the reference at every batch size" if ran else "not run")


def engine_name(slug: str, built: BuiltEngine) -> str:
    """Returns where a built engine belongs inside a bundle."""
    file = engine_file_name(
        slug, built.precision, built.profiles[0], built.targets, built.backend, built.version
    )
    return f"{ENGINES_FOLDER}/{file}"


def state_of(built: BuiltEngine) -> str:
    """Returns in words whether an engine was run; only what ran is ever called verified."""
    reason = built.reason or "this version of the runtime runs onnxruntime only: built, not run"
    share = (
        f", {100 * built.fp16_share:.1f} % of weighted layers in FP16" if built.precision == "fp16" else ""
    )
    return f"{reason}; {built.size / 2**20:.1f} MiB in {built.seconds:.1f} s{share}"


def _require_loadable(path: Path, images: NDArray[np.uint8]) -> None:
    """Opens the FP16 graph in ONNX Runtime: a loader check and no more, since a CPU computes it in FP32."""
    try:
        import onnxruntime
    except ImportError as err:
        raise MissingDependencyError(
            f'onnxruntime is not installed ({err}); pip install "dgsnet[cpu]"'
        ) from err
    options = onnxruntime.SessionOptions()
    # Higher levels crash the process on FP16 vision transformers (onnxruntime 1.23 to 1.31, CPU).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: images})


def _write_parity(path: Path, hops: list[HopReport], reference: str) -> None:
    report = {"schema": 1, "reference": reference, "hops": [hop.to_json() for hop in hops]}
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
