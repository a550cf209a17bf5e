"""What a path on the command line is: a run, a bundle, the authors' file, or an ONNX of the contract."""

from __future__ import annotations

from pathlib import Path

from runtime.bundle.manifest import MANIFEST_NAME
from runtime.errors import UsageError

RUN, BUNDLE, ONNX, OFFICIAL = "run", "bundle", "onnx", "official"


def source_kind(path: Path) -> str:
    """Returns "run", "bundle", "onnx" or "official".

    Raises:
        UsageError: none of these.
    """
    if (path / MANIFEST_NAME).is_file():
        return BUNDLE
    if (path / "checkpoint.json").is_file():
        return RUN
    if path.suffix == ".onnx" and path.is_file():
        return ONNX
    if is_official(path):
        return OFFICIAL
    found = (
        "nothing there" if not path.exists() else "a folder of something else" if path.is_dir() else "a file"
    )
    raise UsageError(
        f"{path}: found {found}, expected a run (checkpoint.json), a bundle ({MANIFEST_NAME}), an ONNX "
        "file or the authors' .pth"
    )


def is_official(path: Path) -> bool:
    """Whether a path is a file that import-official reads: a .pth of the authors of DGS-Net."""
    return path.suffix == ".pth" and path.is_file()
