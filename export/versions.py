"""What made a bundle: versions of the tools and the commit of dgsnet, for its provenance."""

from __future__ import annotations

import subprocess
from pathlib import Path

from runtime import __version__
from runtime.machine import installed_version

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
    found = {name: installed_version(name) for name in _TOOLS}
    return {"dgsnet": __version__, **{name: version for name, version in found.items() if version}}


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
