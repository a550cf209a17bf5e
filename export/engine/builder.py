"""Building one engine: the same code for TensorRT 10, 11 and TensorRT-RTX, typed by the graph alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from export.engine.driver import driver_version
from export.engine.naming import target_from_text, target_number
from export.engine.options import BuildOptions, BuiltEngine
from export.engine.parsed_network import parse_network, weighted_outputs
from export.engine.trt_module import TrtModule, load_trt
from export.engine.watch import PhaseTree, make_log, make_monitor
from runtime.console import Progress
from runtime.errors import EngineBuildError, GateFailedError, MissingDependencyError, UsageError
from runtime.files import write_atomically
from runtime.machine import CudaDevice, cuda_device
from runtime.spec import INPUT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    import tensorrt

    from export.engine.watch import BuildLog

_POLL_SECONDS = 0.05
_TURING = 75


def build_engine(onnx_path: Path, output_path: Path, options: BuildOptions, *, backend: str) -> BuiltEngine:
    """Builds an engine from a contract ONNX file and writes it, whole or not at all.

    Args:
        onnx_path: the graph of ``options.precision``: model.onnx or model_fp16.onnx.
        output_path: where the engine goes, in a folder that exists.
        options: precision, batch sizes, targets and limits.
        backend: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingDependencyError: the backend cannot be imported, or needs a GPU and there is none.
        UsageError: a target is unknown or is not this machine's, or the options do not fit the backend.
        SpecError: the graph does not follow the contract.
        GateFailedError: the graph is not of the precision that was asked for.
        EngineBuildError: the graph cannot be read or built.
    """
    if not output_path.parent.is_dir():
        raise UsageError(f"{output_path.parent}: no such folder to write the engine to")
    trt, gpu, targets = require_buildable(options, backend=backend)
    log = make_log(trt.api)
    builder = trt.api.Builder(log)
    if builder is None:
        raise EngineBuildError(f"{trt.backend} {trt.version} cannot start here: {log.last_errors()}")
    network, parser = parse_network(trt, builder, log, onnx_path)
    share, layers = _checked_share(trt, network, options, onnx_path.name)
    config = builder.create_builder_config()
    _configure(trt, builder, config, options, targets)
    cache = _timing_cache(trt, config, options)
    plan, seconds = _build(trt, builder, network, config, log, f"{backend} {options.precision} engine")
    del parser  # it owns the weights that the network only points to
    _write(output_path, plan)
    if cache is not None and options.timing_cache is not None:
        _write(options.timing_cache, config.get_timing_cache().serialize())
    reason = _why_not_here(trt, plan, log, gpu)
    return BuiltEngine(
        path=output_path,
        size=plan.nbytes,
        backend=trt.backend,
        version=trt.version,
        precision=options.precision,
        profiles=options.profiles,
        targets=targets,
        fp16_share=share,
        weighted_layers=layers,
        seconds=seconds,
        gpu=gpu.name if gpu else None,
        driver=driver_version() if gpu else None,
        runs_here=not reason,
        reason=reason,
    )


def require_buildable(
    options: BuildOptions, *, backend: str
) -> tuple[TrtModule, CudaDevice | None, tuple[str, ...]]:
    """Returns the module, the GPU and the targets of a build, or refuses it before any work is done.

    Raises:
        MissingDependencyError: the backend cannot be imported, or needs a GPU and there is none.
        UsageError: a target is unknown or is not this machine's.
    """
    trt = load_trt(backend)
    gpu = cuda_device()
    if trt.backend == "tensorrt" and gpu is None:
        raise MissingDependencyError(
            "tensorrt builds only on the GPU that it builds for, and no CUDA device is usable here; build on "
            "the target, or use --backend tensorrt-rtx, which needs none"
        )
    if options.timing_cache is not None and not trt.has_timing_cache:
        raise UsageError(
            f"--timing-cache: {trt.backend} keeps no timings; leave it out or use --backend tensorrt"
        )
    return trt, gpu, _targets(trt, options, gpu)


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


def _configure(
    trt: TrtModule,
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    options: BuildOptions,
    targets: tuple[str, ...],
) -> None:
    for sizes in options.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *((batch, MOSAIC_SIDE, MOSAIC_SIDE, 3) for batch in sizes))
        if config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(f"batch sizes {sizes}: {trt.backend} refuses this optimisation profile")
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    # On by default, TF32 would cut what the graph keeps FP32 to the mantissa of FP16.
    config.clear_flag(trt.api.BuilderFlag.TF32)
    if trt.architectures:
        _choose_targets(trt, config, targets)


def _choose_targets(trt: TrtModule, config: tensorrt.IBuilderConfig, targets: tuple[str, ...]) -> None:
    if not hasattr(config, "num_compute_capabilities") or not hasattr(config, "set_compute_capability"):
        raise EngineBuildError(f"{trt.backend} {trt.version} lists targets and takes none, expected it to")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(trt.architectures[target], index):
            raise EngineBuildError(f"target {target}: {trt.backend} {trt.version} refuses it")


def _timing_cache(
    trt: TrtModule, config: tensorrt.IBuilderConfig, options: BuildOptions
) -> tensorrt.ITimingCache | None:
    if options.timing_cache is None:
        return None
    known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, False):
        raise UsageError(
            f"{options.timing_cache.name}: a timing cache of another TensorRT or GPU; name another file"
        )
    return cache


def _build(
    trt: TrtModule,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    log: BuildLog,
    title: str,
) -> tuple[tensorrt.IHostMemory, float]:
    """Builds in a worker thread: TensorRT lets go of the interpreter, so Ctrl-C is still heard here."""
    tree = PhaseTree()
    monitor = make_monitor(trt.api, tree)
    config.progress_monitor = monitor
    plans: list[tensorrt.IHostMemory | None] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            plans.append(builder.build_serialized_network(network, config))
        except Exception as err:
            errors.append(err)

    started = time.monotonic()
    worker = threading.Thread(target=work, name="engine-build", daemon=True)
    with Progress(title, 100) as progress:
        worker.start()
        try:
            while worker.is_alive():
                worker.join(_POLL_SECONDS)
                progress.advance(int(100 * tree.share()) - progress.done, tree.note)
        except KeyboardInterrupt:
            # TensorRT must not be torn down under its own threads: it is told to stop and waited for.
            tree.cancel()
            worker.join()
            raise
        plan = plans[0] if plans else None
        error = errors[0] if errors else None
        if plan is None:
            reason = error or log.last_errors() or "no reason given"
            raise EngineBuildError(f"{trt.backend} {trt.version} built nothing: {reason}") from error
        progress.advance(100 - progress.done)
    return plan, time.monotonic() - started


def _write(path: Path, host_memory: tensorrt.IHostMemory) -> None:
    try:
        write_atomically(path, memoryview(host_memory))
    except OSError as err:
        raise EngineBuildError(
            f"{path}: cannot be written ({err.strerror}); free space or name another"
        ) from err


def _why_not_here(trt: TrtModule, plan: tensorrt.IHostMemory, log: BuildLog, gpu: CudaDevice | None) -> str:
    """Returns why the engine cannot be opened on this machine, empty when it was opened."""
    if gpu is None:
        return "no GPU on this machine: built, not run"
    engine = trt.api.Runtime(log).deserialize_cuda_engine(plan)
    return "" if engine is not None else f"{gpu.name} ({gpu.target}) cannot open it: {log.last_errors()}"
