"""Finding the TensorRT that a backend means, and what this copy can do: by its names, never its version."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING, cast

from runtime.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import tensorrt

ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
# Each alternative is imported in order; the last module of it is the one that is used. The meta package
# tensorrt_rtx is a source distribution, so a machine may hold only its two parts.
_MODULES = {
    "tensorrt": (("tensorrt",),),
    "tensorrt-rtx": (("tensorrt_rtx",), ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")),
}
_CURE = {
    "tensorrt": "on a Jetson it comes with JetPack (make the environment with --system-site-packages), "
    "on a server from NVIDIA's tensorrt package",
    "tensorrt-rtx": 'install it with: pip install "dgsnet[tensorrt-rtx]"',
}
_FOUR_PARTS = re.compile(r"\d+\.\d+\.\d+\.\d+")


@dataclass(frozen=True)
class TrtModule:
    """An imported TensorRT and its features.

    Attributes:
        api: the module. Its type is known to the check of TensorRT names alone (tools/tensorrt_api).
        backend: "tensorrt" or "tensorrt-rtx".
        version: four parts.
        network_flags: argument of ``create_network`` for a strongly typed network.
        architectures: "sm_<NN>" to the enum member, where targets can be chosen; empty elsewhere.
        has_timing_cache: whether a timing cache speeds up a later build.
    """

    api: tensorrt._Module
    backend: str
    version: str
    network_flags: int
    architectures: Mapping[str, object]
    has_timing_cache: bool


def load_trt(backend: str) -> TrtModule:
    """Imports the module of a backend and detects its features.

    Raises:
        UsageError: the backend builds no engines.
        MissingDependencyError: no module of the backend can be imported, its version cannot be read, or it
            has no strongly typed networks.
    """
    if backend not in ENGINE_BACKENDS:
        raise UsageError(
            f"backend {backend!r} builds no engines, expected one of {', '.join(ENGINE_BACKENDS)}"
        )
    api = _import_first(backend)
    return TrtModule(
        api=api,
        backend=backend,
        version=_four_part_version(api, backend),
        network_flags=_network_flags(api, backend),
        architectures=_architectures(api) if backend == "tensorrt-rtx" else {},
        has_timing_cache=backend == "tensorrt",
    )


def _import_first(backend: str) -> tensorrt._Module:
    reasons = []
    for names in _MODULES[backend]:
        try:
            return cast("tensorrt._Module", [import_module(name) for name in names][-1])
        except (ImportError, OSError) as err:
            # A driver library that a container lacks ends the import with OSError.
            reasons.append(f"{names[-1]}: {' '.join(str(err).split())[:200]}")
    raise MissingDependencyError(f"{backend} is not usable here ({'; '.join(reasons)}); {_CURE[backend]}")


def _architectures(api: tensorrt._Module) -> dict[str, object]:
    if not hasattr(api, "ComputeCapability"):
        return {}
    members = api.ComputeCapability.__members__.items()
    return {f"sm_{name[2:]}": member for name, member in members if re.fullmatch(r"SM\d+", name)}


def _network_flags(api: tensorrt._Module, backend: str) -> int:
    flags = api.NetworkDefinitionCreationFlag
    if not hasattr(flags, "STRONGLY_TYPED") and hasattr(api.BuilderFlag, "FP16"):
        raise MissingDependencyError(
            f"{backend} {api.__version__} has no strongly typed networks, expected TensorRT "
            "10.3 or newer; upgrade JetPack to 6.1 or later"
        )
    # TensorRT 10 ignores EXPLICIT_BATCH, and 11 has it no more.
    explicit = 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    return explicit | typed


def _four_part_version(api: tensorrt._Module, backend: str) -> str:
    """Returns the version with its build number, which the Python package of TensorRT 10.3 leaves out."""
    stated = str(api.__version__)
    candidates = [stated, *_distribution_versions(api), _library_version(stated)]
    for version in candidates:
        if _FOUR_PARTS.fullmatch(version) and version.startswith(stated):
            return version
    raise MissingDependencyError(
        f"{backend}: found version {stated!r}, expected four parts such as 10.3.0.26 from the "
        "module, its distribution or its library; reinstall it"
    )


def _distribution_versions(api: tensorrt._Module) -> list[str]:
    names = metadata.packages_distributions().get(api.__name__, [])
    return [metadata.version(name) for name in dict.fromkeys(names)]


def _library_version(stated: str) -> str:
    parts = ("Major", "Minor", "Patch", "Build")
    try:
        library = ctypes.CDLL(f"libnvinfer.so.{stated.split('.')[0]}")
        return ".".join(str(library[f"getInferLib{part}Version"]()) for part in parts)
    except (OSError, AttributeError):
        return ""
