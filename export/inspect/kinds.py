"""What a path on the command line is, decided before anything of it is read into memory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from runtime.bundle.manifest import MANIFEST_NAME
from runtime.errors import SpecError, UsageError
from runtime.names import printable_name

BUNDLE, ONNX, ENGINE = "bundle", "onnx", "engine"
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
# A protobuf message ends here; a graph with more weights than this keeps them in a file beside it.
LARGEST_GRAPH_BYTES = 2**31
_EXPECTED = f"a bundle ({MANIFEST_NAME}), an ONNX file (.onnx) or an engine ({', '.join(ENGINE_SUFFIXES)})"


def kind_of(path: Path) -> str:
    """Returns "bundle", "onnx" or "engine".

    Raises:
        UsageError: nothing is there, or something else.
        SpecError: a file that is empty or too large for what its name says.
        OSError: it cannot be looked at.
    """
    name = printable_name(os.fspath(path))
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as err:
        raise UsageError(f"{name}: no such file or folder, expected {_EXPECTED}; check the path") from err
    if stat.S_ISDIR(status.st_mode):
        if (path / MANIFEST_NAME).is_file():
            return BUNDLE
        is_run = (path / "checkpoint.json").is_file()
        run = "a run; make a bundle of it with build-engine"
        found = run if is_run else f"a folder without {MANIFEST_NAME}"
        raise UsageError(f"{name}: found {found}, expected {_EXPECTED}")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{name}: found a device, pipe or socket, expected {_EXPECTED}")
    kinds = {".onnx": ONNX} | dict.fromkeys(ENGINE_SUFFIXES, ENGINE)
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        ending = repr(path.suffix) if path.suffix else "no suffix"
        raise UsageError(f"{name}: found a file with {ending}, expected {_EXPECTED}")
    if status.st_size == 0:
        raise SpecError(f"{name}: found an empty file, expected {_EXPECTED}; write or copy it again")
    if kind == ONNX and status.st_size >= LARGEST_GRAPH_BYTES:
        raise SpecError(
            f"{name}: found {status.st_size} bytes, an ONNX file has less than {LARGEST_GRAPH_BYTES}; keep "
            "its weights in a data file beside it"
        )
    return kind
