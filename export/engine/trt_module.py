"""Finding the TensorRT that a backend means, and what this copy can do: by its names, never its version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.backends.tensorrt.module import MODULES, four_part_version, import_tensorrt
from runtime.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import tensorrt

ENGINE_BACKENDS = tuple(MODULES)


@dataclass(frozen=True)
class TrtModule:
    """An imported TensorRT and its features.

    Attributes:
        api: the module. Its type is known to the check of TensorRT names alone (tools/tensorrt_api).
        backend: "tensorrt" or "tensorrt-rtx".
        version: four parts.
        network_flags: argument of ``create_network`` for a strongly typed network.
        architectures: "sm_<NN>" to the enum member, where targets can be chosen; empty elsewhere.
        has_timing_cache: whether a timing cache speeds up a later build; in TensorRT-RTX it does nothing.
        has_lean_runtime: whether an engine can carry the code that later versions need to run it.
    """

    api: tensorrt._Module
    backend: str
    version: str
    network_flags: int
    architectures: Mapping[str, object]
    has_timing_cache: bool
    has_lean_runtime: bool


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
    api = import_tensorrt(backend)
    return TrtModule(
        api=api,
        backend=backend,
        version=four_part_version(api, backend),
        network_flags=_network_flags(api, backend),
        architectures=_architectures(api) if backend == "tensorrt-rtx" else {},
        has_timing_cache=backend == "tensorrt",
        has_lean_runtime=backend == "tensorrt",
    )


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
