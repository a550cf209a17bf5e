"""What a path on the command line is: a run, a bundle, or an ONNX file that follows the contract."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UsageError
from runtime.manifest import MANIFEST_NAME

RUN, BUNDLE, ONNX = "run", "bundle", "onnx"


def source_kind(path: Path) -> str:
    """Returns "run", "bundle" or "onnx".

    Raises:
        UsageError: none of these.
    """
    if (path / MANIFEST_NAME).is_file():
        return BUNDLE
    if (path / "checkpoint.json").is_file():
        return RUN
    if path.suffix == ".onnx" and path.is_file():
        return ONNX
    found = (
        "nothing there" if not path.exists() else "a folder of something else" if path.is_dir() else "a file"
    )
    hint = "; the authors' .pth cannot be read by this version" if path.suffix == ".pth" else ""
    raise UsageError(
        f"{path}: found {found}, expected a run (checkpoint.json), a bundle ({MANIFEST_NAME}) or an ONNX "
        f"file{hint}"
    )
