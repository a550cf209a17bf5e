"""What the first bytes of an engine file say, read before TensorRT is given any of them.

TensorRT's plans begin with ``ftrt`` and those of TensorRT-RTX with ``vtrt``. Where the next 4 bytes are 0,
bytes 24 to 27 are the version: TensorRT's own trtexec reads it there, and TensorRT-RTX 1.7.1.116 writes
01 07 01 74. An unknown beginning is left to the library to judge.
"""

from __future__ import annotations

from pathlib import Path

from runtime.bundle.engine_entry import EngineEntry
from runtime.errors import EngineLoadError

_HEADER_BYTES = 64
_BACKENDS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
_VERSION = slice(24, 28)


def check_header(path: Path, entry: EngineEntry) -> None:
    """Compares the header of an engine file with what the manifest says of it.

    Raises:
        EngineLoadError: the file cannot be read, is too short, or is of another backend or version.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER_BYTES)
    except OSError as err:
        raise EngineLoadError(f"{path}: cannot be read ({err.strerror}); check its permissions") from err
    if len(header) < _HEADER_BYTES:
        raise EngineLoadError(
            f"{path}: found {len(header)} bytes, expected an engine of {entry.backend}; get the bundle again"
        )
    backend = _BACKENDS.get(header[:4])
    if backend is not None and backend != entry.backend:
        raise EngineLoadError(
            f"{path}: found an engine of {backend}, the manifest says {entry.backend}; build it again"
        )
    if backend is not None and header[4:8] == bytes(4):
        found = list(header[_VERSION])
        # One byte a part: a build number above 255 does not fit and is cut.
        expected = [int(part) & 0xFF for part in entry.version.split(".") if part.isdigit()]
        if len(expected) == len(found) and found != expected:
            raise EngineLoadError(
                f"{path}: its header says version {'.'.join(map(str, found))}, the manifest says "
                f"{entry.version}; build it again"
            )
