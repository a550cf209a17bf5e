"""Where execution contexts come from, in TensorRT and in TensorRT-RTX with its cache of compiled kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cache import read_cache_file, write_cache_file
from runtime.errors import EngineLoadError

if TYPE_CHECKING:
    import tensorrt

logger = logging.getLogger("dgsnet.tensorrt")

# NVIDIA states that a cache stays below 100 MB.
_MOST_BYTES = 100 << 20


@dataclass(frozen=True)
class ContextSource:
    """Makes the execution contexts of one engine; their scratch memory is the caller's to give.

    Attributes:
        make: returns a new context, None when TensorRT refuses.
        save: keeps what was compiled for the next start. Needs the CUDA context that it was compiled in.
    """

    make: Callable[[], tensorrt.IExecutionContext | None]
    save: Callable[[], None]


def plain_contexts(api: tensorrt._Module, engine: tensorrt.ICudaEngine) -> ContextSource:
    """Returns the source for an engine of TensorRT."""
    strategy = api.ExecutionContextAllocationStrategy.USER_MANAGED
    return ContextSource(lambda: engine.create_execution_context(strategy), lambda: None)


def rtx_contexts(
    api: tensorrt._Module, engine: tensorrt.ICudaEngine, kernels: str, cache_path: Path
) -> ContextSource:
    """Returns the source for an engine of TensorRT-RTX, which compiles its kernels on this machine.

    Args:
        api: the module that opened the engine.
        engine: the engine.
        kernels: for a batch size not met before: "eager" compiles kernels for it at once, "lazy" in the
            background while general ones run, "none" runs the general ones.
        cache_path: file of the user's cache that keeps compiled kernels.

    Raises:
        EngineLoadError: this TensorRT-RTX has no runtime configuration, or refuses its cache.
    """
    if not hasattr(engine, "create_runtime_config") or not hasattr(
        api, "DynamicShapesKernelSpecializationStrategy"
    ):
        raise EngineLoadError(
            f"tensorrt-rtx {api.__version__} has no runtime configuration, expected 1.7 or newer; upgrade it"
        )
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
    strategies = api.DynamicShapesKernelSpecializationStrategy
    chosen = {"eager": strategies.EAGER, "lazy": strategies.LAZY, "none": strategies.NONE}[kernels]
    if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
        config.dynamic_shapes_kernel_specialization_strategy = chosen
    if not hasattr(config, "create_runtime_cache") or not hasattr(config, "set_runtime_cache"):
        return ContextSource(lambda: engine.create_execution_context(config), lambda: None)
    cache = config.create_runtime_cache()
    known = read_cache_file(cache_path, _MOST_BYTES)
    if known is not None and not cache.deserialize(known):
        logger.info("compiled kernels of another driver, GPU or TensorRT-RTX are left aside: %s", cache_path)
        known = None
    if not config.set_runtime_cache(cache):
        raise EngineLoadError("tensorrt-rtx refuses its own cache of compiled kernels; report this")

    def save() -> None:
        serialized = cache.serialize()
        if serialized is None:
            raise EngineLoadError(
                "tensorrt-rtx does not give out its compiled kernels; the next start is slow"
            )
        compiled = bytes(memoryview(serialized))
        if compiled != known and len(compiled) <= _MOST_BYTES:
            write_cache_file(cache_path, compiled)

    return ContextSource(lambda: engine.create_execution_context(config), save)
