"""Building one engine: the same code for TensorRT 10, 11 and TensorRT-RTX, typed by the graph alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from export.engine.compatibility import check_engine
from export.engine.config import make_config
from export.engine.driver import driver_version
from export.engine.naming import target_from_text, target_number
from export.engine.options import NO_HARDWARE_LEVEL, BuildOptions, BuiltEngine
from export.engine.parsed_network import parse_network, weighted_outputs
from export.engine.serialized import build_serialized
from export.engine.timing_cache import keep_timings, timing_cache_file, use_timings
from export.engine.trt_module import TrtModule, load_trt
from runtime.backends.tensorrt.log import make_log
from runtime.errors import EngineBuildError, GateFailedError, MissingDependencyError, UsageError
from runtime.files import write_atomically
from runtime.machine import CudaDevice, cuda_device

if TYPE_CHECKING:
    import tensorrt

    from runtime.backends.tensorrt.log import TensorRtLog

_TURING = 75


def build_engine(onnx_path: Path, output_path: Path, options: BuildOptions, *, backend: str) -> BuiltEngine:
    """Builds an engine from a contract ONNX file and writes it, whole or not at all.

    Args:
        onnx_path: the graph of ``options.precision``: model.onnx or model_fp16.onnx.
        output_path: where the engine goes, in a folder that exists.
        options: precision, batch sizes, targets, limits and levels.
        backend: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingDependencyError: the backend cannot be imported, or needs a GPU and there is none.
        UsageError: a target is unknown or is not this machine's, or the options do not fit the backend.
        SpecError: the graph does not follow the contract.
        GateFailedError: the graph is not of the precision that was asked for.
        EngineBuildError: the graph cannot be read or built, a level was ignored, or nothing can be written.
    """
    folder = output_path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder to write the engine to")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written; name a folder of yours")
    trt, gpu, targets = require_buildable(options, backend=backend)
    timings = timing_cache_file(trt, gpu, options)
    log = make_log(trt.api)
    builder = _builder(trt, log)
    config = make_config(trt, builder, options, targets)
    network, parser = parse_network(trt, builder, log, onnx_path)
    share, layers = _checked_share(trt, network, options, onnx_path.name)
    read = use_timings(config, timings) if timings is not None else b""
    built = build_serialized(trt, builder, network, config, log, f"{backend} {options.precision} engine")
    del parser  # it owns the weights that the network only points to
    reason = _why_not_here(trt, built.plan, log, gpu, options)
    _write(output_path, built.plan)
    if timings is not None:
        keep_timings(config, timings, read)
    level = options.hardware_compatible
    return BuiltEngine(
        path=output_path,
        size=built.plan.nbytes,
        backend=trt.backend,
        version=trt.version,
        precision=options.precision,
        profiles=options.engine_profiles,
        targets=targets,
        fp16_share=share,
        weighted_layers=layers,
        seconds=built.seconds,
        peak_bytes=built.peak_bytes,
        gpu=gpu.name if gpu else None,
        driver=driver_version() if gpu else None,
        hardware_compatible=None if level == NO_HARDWARE_LEVEL else level,
        version_compatible=options.version_compatible,
        runs_here=not reason,
        reason=reason,
    )


def require_buildable(
    options: BuildOptions, *, backend: str
) -> tuple[TrtModule, CudaDevice | None, tuple[str, ...]]:
    """Returns the module, the GPU and the targets of a build, or refuses it before any work is done.

    Raises:
        MissingDependencyError: the backend cannot be imported, or needs a GPU and there is none.
        UsageError: a target is unknown or is not this machine's, or an option does not fit the backend.
        EngineBuildError: the library ignores a level that was asked for.
    """
    trt = load_trt(backend)
    gpu = cuda_device()
    if trt.backend == "tensorrt" and gpu is None:
        raise MissingDependencyError(
            f"tensorrt {trt.version} is installed, but it builds only on the GPU that it builds for, and no "
            "CUDA device is usable here; build on the target, or use --backend tensorrt-rtx, which needs none"
        )
    timing_cache_file(trt, gpu, options)
    targets = _targets(trt, options, gpu)
    if options.version_compatible or options.hardware_compatible != NO_HARDWARE_LEVEL:
        make_config(trt, _builder(trt, make_log(trt.api)), options, targets)
    return trt, gpu, targets


def _builder(trt: TrtModule, log: TensorRtLog) -> tensorrt.Builder:
    builder = trt.api.Builder(log)
    if builder is None:
        raise EngineBuildError(f"{trt.backend} {trt.version} cannot start here: {log.take_errors()}")
    return builder


def _targets(trt: TrtModule, options: BuildOptions, gpu: CudaDevice | None) -> tuple[str, ...]:
    asked = sorted({target_from_text(text) for text in options.targets}, key=target_number)
    if trt.backend == "tensorrt":
        here = gpu.target if gpu else ""
        if asked not in ([], [here]):
            raise UsageError(
                f"target {', '.join(asked)}: tensorrt builds for this machine's GPU only, {here}"
            )
        return (here,)
    unknown = [target for target in asked if target not in trt.architectures]
    if unknown:
        known = ", ".join(sorted(trt.architectures, key=target_number))
        raise UsageError(f"target {unknown[0]}: {trt.backend} {trt.version} does not have it, it has {known}")
    return tuple(asked or sorted(_default_targets(trt), key=target_number))


def _default_targets(trt: TrtModule) -> list[str]:
    # TensorRT-RTX 1.7.1 has no FP32 GEMM for Turing, which every graph with an FP32 head needs.
    return [target for target in trt.architectures if target_number(target) > _TURING]


def _checked_share(
    trt: TrtModule, network: tensorrt.INetworkDefinition, options: BuildOptions, name: str
) -> tuple[float, int]:
    outputs = weighted_outputs(trt, network)
    share = options.policy.share(outputs)
    if options.precision == "fp16":
        options.policy.require(share, f"{name} as parsed by {trt.backend}")
    elif any(is_half for _name, is_half in outputs):
        halves = sum(is_half for _name, is_half in outputs)
        raise GateFailedError(
            f"{name}: found {halves} of {len(outputs)} MatMul, Gemm and Conv outputs in FP16, expected none "
            "in an fp32 engine; build it from model.onnx"
        )
    return share, len(outputs)


def _write(path: Path, host_memory: tensorrt.IHostMemory) -> None:
    try:
        write_atomically(path, memoryview(host_memory))
    except OSError as err:
        raise EngineBuildError(
            f"{path}: cannot be written ({err.strerror}); free space or name another"
        ) from err


def _why_not_here(
    trt: TrtModule,
    plan: tensorrt.IHostMemory,
    log: TensorRtLog,
    gpu: CudaDevice | None,
    options: BuildOptions,
) -> str:
    """Returns why the engine cannot be opened on this machine, empty when it was opened."""
    if gpu is None:
        return "no GPU on this machine: built, not run"
    runtime = trt.api.Runtime(log)
    # A version-compatible engine carries code; this one was built by this very process.
    runtime.engine_host_code_allowed = options.version_compatible
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return f"{gpu.name} ({gpu.target}) cannot open it: {log.take_errors()}"
    check_engine(trt, engine, options)
    return ""
