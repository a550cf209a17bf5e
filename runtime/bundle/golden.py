"""golden.npz: the mosaics that a bundle must reproduce, read without trusting a byte of it.

Arrays: ``images`` uint8 [N, 224, 224, 3], ``logit`` float32 [N], ``embedding`` float32 [N, D].
"""

from __future__ import annotations

import ast
import os
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ManifestError, one_line
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

MAX_GOLDEN = 4096
_MAX_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Golden:
    """Mosaics and what the reference makes of them.

    Attributes:
        images: uint8 ``[N, 224, 224, 3]``.
        logit: float32 ``[N]``.
        embedding: float32 ``[N, D]``.
    """

    images: NDArray[np.uint8]
    logit: NDArray[np.float32]
    embedding: NDArray[np.float32]


def read_golden(
    path: str | os.PathLike[str], embed_dim: int, limit: int | None = None, *, count: int | None = None
) -> Golden:
    """Reads golden.npz; nothing is unpacked before its declared type and shape have been checked.

    Args:
        path: the file.
        embed_dim: width D that the manifest states.
        limit: read this many rows at most; None reads all.
        count: how many rows the manifest states; None where it states none.

    Raises:
        ManifestError: not such a file, or with arrays of another type or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            images, held = _read_rows(archive, INPUT_NAME, np.uint8, (MOSAIC_SIDE, MOSAIC_SIDE, 3), limit)
            logit, logits_held = _read_rows(archive, LOGIT_NAME, np.float32, (), limit)
            embedding, embeddings_held = _read_rows(archive, EMBEDDING_NAME, np.float32, (embed_dim,), limit)
    except ManifestError as err:
        raise ManifestError(f"{path}: {err}; rebuild the bundle") from err
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as err:
        raise ManifestError(f"{path}: not a readable npz ({one_line(err)}); rebuild it") from err
    except (NotImplementedError, RuntimeError) as err:
        raise ManifestError(f"{path}: found encrypted or unusual zip members ({err}); rebuild it") from err
    if not held == logits_held == embeddings_held == (held if count is None else count):
        stated = "" if count is None else f", {count} as the manifest states"
        raise ManifestError(
            f"{path}: found {held} images, {logits_held} logits and {embeddings_held} embeddings, "
            f"expected as many of each{stated}; rebuild the bundle"
        )
    if not (np.isfinite(logit).all() and np.isfinite(embedding).all()):
        raise ManifestError(f"{path}: found NaN or infinite reference values; rebuild the bundle")
    return Golden(images, logit, embedding)


def _read_rows(
    archive: zipfile.ZipFile, name: str, dtype: Any, row: tuple[int, ...], limit: int | None
) -> tuple[NDArray[Any], int]:
    """Returns the first rows of an array, and how many it holds."""
    member = archive.getinfo(f"{name}.npy")
    # zipfile unpacks these two piece by piece; of bzip2 and LZMA it unpacks whatever a block holds.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ManifestError(f"{name}: found zip method {member.compress_type}, expected stored or deflated")
    with archive.open(member) as stream:
        shape, fortran, found = _read_header(stream)
        if found != np.dtype(dtype).str or fortran or len(shape) != 1 + len(row) or shape[1:] != row:
            raise ManifestError(
                f"{name}: found {found} {list(shape)}, expected {np.dtype(dtype)} {['N', *row]} in C order"
            )
        if not 1 <= shape[0] <= MAX_GOLDEN:
            raise ManifestError(f"{name}: found {shape[0]} rows, expected 1 to {MAX_GOLDEN}")
        row_bytes = int(np.prod(row, dtype=np.int64)) * np.dtype(dtype).itemsize
        if member.file_size > _MAX_HEADER_BYTES + shape[0] * row_bytes:
            raise ManifestError(f"{name}: found {member.file_size} bytes for {shape[0]} rows")
        rows = shape[0] if limit is None else min(limit, shape[0])
        content = stream.read(rows * row_bytes)
    if len(content) != rows * row_bytes:
        raise ManifestError(f"{name}: it ends after {len(content)} of {rows * row_bytes} bytes")
    return np.frombuffer(content, dtype=dtype).reshape((rows, *row)), shape[0]


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, str]:
    """Returns shape, Fortran order and dtype of an npy member.

    numpy's own reader falls back to a tokenizer that fails in many ways on hostile text.
    """
    magic = stream.read(8)
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(magic)
    if width is None:
        raise ManifestError(f"found {magic!r} at the start of an array, expected npy version 1.0 or 2.0")
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER_BYTES:
        raise ManifestError(f"found an npy header of {length} bytes, expected at most {_MAX_HEADER_BYTES}")
    try:
        header = ast.literal_eval(stream.read(length).decode("ascii").strip())
        shape, fortran, dtype = header["shape"], header["fortran_order"], header["descr"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as err:
        raise ManifestError("found an npy header that does not parse") from err
    if not isinstance(shape, tuple) or any(type(size) is not int for size in shape):
        raise ManifestError(f"found npy shape {shape!r:.100}, expected whole numbers")
    return shape, fortran is not False, str(dtype)[:100]
