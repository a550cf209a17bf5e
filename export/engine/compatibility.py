"""Engines that run on other GPUs or later versions: asked for, set, and read back. Ignored is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.engine.options import NO_HARDWARE_LEVEL, BuildOptions
from export.engine.trt_module import TrtModule
from runtime.errors import EngineBuildError, UsageError

if TYPE_CHECKING:
    import tensorrt


def set_compatibility(trt: TrtModule, config: tensorrt.IBuilderConfig, options: BuildOptions) -> None:
    """Sets what was asked for and compares it with what the configuration then says.

    Raises:
        UsageError: this version of the library has no such level.
        EngineBuildError: the library ignored it.
    """
    if options.version_compatible:
        if not trt.has_lean_runtime:
            raise UsageError(
                f"--version-compatible: {trt.backend} has no lean runtime to put into an engine, which runs "
                "on the one version that built it; leave it out"
            )
        config.set_flag(trt.api.BuilderFlag.VERSION_COMPATIBLE)
        if not config.get_flag(trt.api.BuilderFlag.VERSION_COMPATIBLE):
            raise _ignored(trt, "--version-compatible", "off")
    if options.hardware_compatible != NO_HARDWARE_LEVEL:
        flag = f"--hardware-compatible {options.hardware_compatible}"
        level = hardware_level(trt, options.hardware_compatible)
        config.hardware_compatibility_level = level
        if config.hardware_compatibility_level != level:
            raise _ignored(trt, flag, config.hardware_compatibility_level.name)


def check_engine(trt: TrtModule, engine: tensorrt.ICudaEngine, options: BuildOptions) -> None:
    """Compares the level that an opened engine states with the one that was asked for.

    Raises:
        EngineBuildError: they differ.
    """
    # TensorRT-RTX answers this with an error in its log, and takes no level in the first place.
    if options.hardware_compatible == NO_HARDWARE_LEVEL:
        return
    if engine.hardware_compatibility_level != hardware_level(trt, options.hardware_compatible):
        raise _ignored(
            trt,
            f"--hardware-compatible {options.hardware_compatible}",
            f"{engine.hardware_compatibility_level.name} in the engine",
        )


def hardware_level(trt: TrtModule, name: str) -> tensorrt.HardwareCompatibilityLevel:
    """Returns the library's member for "ampere-plus" or "same-compute-capability".

    Raises:
        UsageError: this version has no such level.
    """
    levels = trt.api.HardwareCompatibilityLevel
    if name == "ampere-plus":
        return levels.AMPERE_PLUS
    if name == "same-compute-capability" and hasattr(levels, "SAME_COMPUTE_CAPABILITY"):
        return levels.SAME_COMPUTE_CAPABILITY
    raise UsageError(
        f"--hardware-compatible {name}: {trt.backend} {trt.version} has no such level, expected ampere-plus"
    )


def _ignored(trt: TrtModule, flag: str, found: str) -> EngineBuildError:
    return EngineBuildError(
        f"{flag}: {trt.backend} {trt.version} ignores it (read back: {found.lower()}); leave it out and "
        "build on each target"
    )
