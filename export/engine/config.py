"""The builder's configuration: what was asked for, and what every engine of ours gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.engine.compatibility import set_compatibility
from export.engine.options import BuildOptions
from export.engine.trt_module import TrtModule
from runtime.errors import EngineBuildError
from runtime.spec import INPUT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    import tensorrt


def make_config(
    trt: TrtModule, builder: tensorrt.Builder, options: BuildOptions, targets: tuple[str, ...]
) -> tensorrt.IBuilderConfig:
    """Returns the configuration of a build.

    Args:
        trt: the library.
        builder: what will build.
        options: batch sizes, limits and levels.
        targets: architectures, ``sm_<NN>``; used where targets can be chosen.

    Raises:
        UsageError: this version lacks a level that was asked for.
        EngineBuildError: the library refuses or ignores what was asked for.
    """
    config = builder.create_builder_config()
    for sizes in options.engine_profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *((batch, MOSAIC_SIDE, MOSAIC_SIDE, 3) for batch in sizes))
        if config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(f"batch sizes {sizes}: {trt.backend} refuses this optimisation profile")
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    # On by default, TF32 would cut what the graph keeps FP32 to the mantissa of FP16.
    config.clear_flag(trt.api.BuilderFlag.TF32)
    # Without it an engine tells inspect the names of its layers and neither precisions nor kernels.
    config.profiling_verbosity = trt.api.ProfilingVerbosity.DETAILED
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        if config.builder_optimization_level != options.optimization_level:
            raise EngineBuildError(
                f"--optimization-level {options.optimization_level}: {trt.backend} {trt.version} ignores it "
                f"(read back: {config.builder_optimization_level}); leave it out"
            )
    set_compatibility(trt, config, options)
    if trt.architectures:
        _choose_targets(trt, config, targets)
    return config


def _choose_targets(trt: TrtModule, config: tensorrt.IBuilderConfig, targets: tuple[str, ...]) -> None:
    if not hasattr(config, "num_compute_capabilities") or not hasattr(config, "set_compute_capability"):
        raise EngineBuildError(f"{trt.backend} {trt.version} lists targets and takes none, expected it to")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(trt.architectures[target], index):
            raise EngineBuildError(f"target {target}: {trt.backend} {trt.version} refuses it")
