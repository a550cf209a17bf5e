"""The light half of dgsnet: pictures in, verdicts out, with numpy, Pillow and onnxruntime alone.

Public names are loaded on first use, so that ``import runtime`` costs nothing. Never imports torch or triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Detector": "runtime.detector",
    "Detection": "runtime.detection",
    "decode_image": "runtime.decode",
    "patch_entropy": "runtime.patches.selection",
    "select_patches": "runtime.patches.selection",
    "DgsNetError": "runtime.errors",
    "UsageError": "runtime.errors",
    "SpecError": "runtime.errors",
    "ImageError": "runtime.errors",
    "ImageReadError": "runtime.errors",
    "DataError": "runtime.errors",
    "CheckpointError": "runtime.errors",
    "ManifestError": "runtime.errors",
    "EngineBuildError": "runtime.errors",
    "EngineLoadError": "runtime.errors",
    "MissingDependencyError": "runtime.errors",
    "GateFailedError": "runtime.errors",
    "ParityError": "runtime.errors",
    "SelfTestError": "runtime.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from runtime.decode import decode_image as decode_image
    from runtime.detection import Detection as Detection
    from runtime.detector import Detector as Detector
    from runtime.errors import CheckpointError as CheckpointError
    from runtime.errors import DataError as DataError
    from runtime.errors import DgsNetError as DgsNetError
    from runtime.errors import EngineBuildError as EngineBuildError
    from runtime.errors import EngineLoadError as EngineLoadError
    from runtime.errors import GateFailedError as GateFailedError
    from runtime.errors import ImageError as ImageError
    from runtime.errors import ImageReadError as ImageReadError
    from runtime.errors import ManifestError as ManifestError
    from runtime.errors import MissingDependencyError as MissingDependencyError
    from runtime.errors import ParityError as ParityError
    from runtime.errors import SelfTestError as SelfTestError
    from runtime.errors import SpecError as SpecError
    from runtime.errors import UsageError as UsageError
    from runtime.patches.selection import patch_entropy as patch_entropy
    from runtime.patches.selection import select_patches as select_patches


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
