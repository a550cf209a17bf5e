"""parity/build.json: how long an engine took to build, and how much memory.

No two builds agree on either, so neither is in the manifest: what was built from the same files by the same
versions has the same digest. Like the reports beside it the file is not hashed, and not trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle.manifest import PARITY_FOLDER, Manifest
from runtime.files import write_atomically

BUILD_NAME = "build.json"
_SCHEMA = 1
_MAX_BYTES = 1_000_000
_MOST = 2**50


@dataclass(frozen=True)
class BuildFigures:
    """What one build took.

    Attributes:
        seconds: of the library's own work.
        peak_bytes: most host memory that the process held, None where that is not known.
    """

    seconds: float
    peak_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Returns the form that build.json stores."""
        return {"seconds": round(self.seconds, 1), "peak_bytes": self.peak_bytes}


def write_build_figures(parity: Path, figures: Mapping[str, BuildFigures]) -> None:
    """Writes build.json into an existing folder, whole or not at all; no figures, no file.

    Args:
        parity: the folder ``parity`` of a bundle.
        figures: by the engine's name inside the bundle.

    Raises:
        OSError: the folder cannot be written.
    """
    if figures:
        content = {"schema": _SCHEMA, "engines": {name: each.to_json() for name, each in figures.items()}}
        write_atomically(parity / BUILD_NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_build_figures(bundle: Path, manifest: Manifest) -> dict[str, BuildFigures]:
    """Returns the figures of a bundle's engines by file name, those of an older manifest's entries included.

    A missing or damaged build.json has none: nothing depends on them.

    Args:
        bundle: its folder.
        manifest: its manifest; other engines are left out.
    """
    stated = _stated(bundle / PARITY_FOLDER / BUILD_NAME)
    found = {}
    for entry in manifest.engines:
        figures = _checked(stated.get(entry.file))
        if figures is None and entry.build_seconds is not None:
            figures = BuildFigures(entry.build_seconds, entry.build_peak_bytes)
        if figures is not None:
            found[entry.file] = figures
    return found


def _stated(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(_MAX_BYTES))
        return dict(content["engines"]) if content["schema"] == _SCHEMA else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _checked(value: object) -> BuildFigures | None:
    if not isinstance(value, dict):
        return None
    seconds, peak = _number(value.get("seconds")), _number(value.get("peak_bytes"))
    if seconds is None:
        return None
    return BuildFigures(float(seconds), None if peak is None else int(peak))


def _number(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < _MOST else None
