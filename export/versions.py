"""What made a bundle: versions of the tools and the commit of dgsnet, for its provenance."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

_TOOLS = (
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
    "pillow",
)


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


def source_commit() -> str | None:
    """Returns the commit of the checkout that this code runs from; None when it runs from an installation."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    commit = done.stdout.strip()
    return commit if done.returncode == 0 and len(commit) == 40 else None
