"""Finding the TensorRT that a backend means and its four-part version."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, cast

from runtime.errors import MissingDependencyError, one_line

if TYPE_CHECKING:
    import tensorrt

# Each alternative is imported in order; the last module of it is the one that is used. The meta package
# tensorrt_rtx is a source distribution, so a machine may hold only its two parts.
MODULES = {
    "tensorrt": (("tensorrt",),),
    "tensorrt-rtx": (("tensorrt_rtx",), ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")),
}
_CURE = {
    "tensorrt": "on a Jetson it comes with JetPack (make the environment with --system-site-packages), "
    "on a server from NVIDIA's tensorrt package",
    "tensorrt-rtx": 'install it with: pip install "dgsnet[tensorrt-rtx]"',
}
_FOUR_PARTS = re.compile(r"\d+\.\d+\.\d+\.\d+")


def import_tensorrt(backend: str) -> tensorrt._Module:
    """Imports the module of "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingDependencyError: none of its modules can be imported.
    """
    reasons = []
    for names in MODULES[backend]:
        try:
            return cast("tensorrt._Module", [import_module(name) for name in names][-1])
        except (ImportError, OSError) as err:
            # A driver library that a container lacks ends the import with OSError.
            reasons.append(f"{names[-1]}: {one_line(err, 200)}")
    raise MissingDependencyError(f"{backend} is not usable here ({'; '.join(reasons)}); {_CURE[backend]}")


def four_part_version(api: tensorrt._Module, backend: str) -> str:
    """Returns the version with its build number, which the Python package of TensorRT 10.3 leaves out.

    Raises:
        MissingDependencyError: neither the module nor its distribution nor its library states it.
    """
    stated = str(api.__version__)
    for version in _candidates(api, stated):
        if _FOUR_PARTS.fullmatch(version) and version.startswith(stated):
            return version
    raise MissingDependencyError(
        f"{backend}: found version {stated!r}, expected four parts such as 10.3.0.26 from the module, its "
        "distribution or its library; reinstall it"
    )


def _candidates(api: tensorrt._Module, stated: str) -> Iterator[str]:
    yield stated
    # Reading which distribution brought a module takes a tenth of a second: only where it is needed.
    yield from _distribution_versions(api)
    yield _library_version(stated)


def _distribution_versions(api: tensorrt._Module) -> list[str]:
    from importlib import metadata

    names = metadata.packages_distributions().get(api.__name__, [])
    return [metadata.version(name) for name in dict.fromkeys(names)]


def _library_version(stated: str) -> str:
    parts = ("Major", "Minor", "Patch", "Build")
    try:
        library = ctypes.CDLL(f"libnvinfer.so.{stated.split('.')[0]}")
        return ".".join(str(library[f"getInferLib{part}Version"]()) for part in parts)
    except (OSError, AttributeError):
        return ""
