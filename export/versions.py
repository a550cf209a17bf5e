"""Versions of the tools that made a bundle, for its provenance."""

from __future__ import annotations

from importlib import metadata

_TOOLS = ("torch", "open_clip_torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")


def tool_versions() -> dict[str, str]:
    """Returns the installed version of every tool that takes part; absent ones are left out."""
    from runtime import __version__

    versions = {"dgsnet": __version__}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
