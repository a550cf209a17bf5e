"""Finding the TensorRT that a backend means, and what this copy can do: by its names, never its version."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from runtime.errors import MissingDependencyError, UsageError

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
        api: the module.
        backend: "tensorrt" or "tensorrt-rtx".
        version: four parts.
        network_flags: argument of ``create_network`` for a strongly typed network.
        architectures: "sm_<NN>" to the enum member, where targets can be chosen; empty elsewhere.
        has_timing_cache: whether a timing cache speeds up a later build.
    """

    api: Any
    backend: str
    version: str
    network_flags: int
    architectures: dict[str, Any]
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
    members = _members(api, "ComputeCapability") if backend == "tensorrt-rtx" else {}
    return TrtModule(
        api=api,
        backend=backend,
        version=_four_part_version(api, backend),
        network_flags=_network_flags(api, backend),
        architectures={
            f"sm_{name[2:]}": member for name, member in members.items() if re.fullmatch(r"SM\d+", name)
        },
        has_timing_cache=backend == "tensorrt",
    )


def _import_first(backend: str) -> Any:
    reasons = []
    for names in _MODULES[backend]:
        try:
            return [import_module(name) for name in names][-1]
        except (ImportError, OSError) as err:
            # A driver library that a container lacks ends the import with OSError.
            reasons.append(f"{names[-1]}: {' '.join(str(err).split())[:200]}")
    raise MissingDependencyError(f"{backend} is not usable here ({'; '.join(reasons)}); {_CURE[backend]}")


def _members(api: Any, enum: str) -> dict[str, Any]:
    return dict(getattr(getattr(api, enum, None), "__members__", {}))


def _network_flags(api: Any, backend: str) -> int:
    flags = _members(api, "NetworkDefinitionCreationFlag")
    if "STRONGLY_TYPED" not in flags and "FP16" in _members(api, "BuilderFlag"):
        raise MissingDependencyError(
            f"{backend} {getattr(api, '__version__', '')} has no strongly typed networks, expected TensorRT "
            "10.3 or newer; upgrade JetPack to 6.1 or later"
        )
    return sum(1 << int(flags[name]) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in flags)


def _four_part_version(api: Any, backend: str) -> str:
    """Returns the version with its build number, which the Python package of TensorRT 10.3 leaves out."""
    stated = str(getattr(api, "__version__", ""))
    candidates = [stated, *_distribution_versions(api), _library_version(stated)]
    for version in candidates:
        if _FOUR_PARTS.fullmatch(version) and version.startswith(stated):
            return version
    raise MissingDependencyError(
        f"{backend}: found version {stated or 'unknown'!r}, expected four parts such as 10.3.0.26 from the "
        "module, its distribution or its library; reinstall it"
    )


def _distribution_versions(api: Any) -> list[str]:
    names = metadata.packages_distributions().get(api.__name__, [])
    return [metadata.version(name) for name in dict.fromkeys(names)]


def _library_version(stated: str) -> str:
    parts = ("Major", "Minor", "Patch", "Build")
    try:
        library = ctypes.CDLL(f"libnvinfer.so.{stated.split('.')[0]}")
        return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
    except (OSError, AttributeError):
        return ""
