"""Where the weights of an ONNX file lie: inside it, or in the data file beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SpecError

if TYPE_CHECKING:
    from onnx import TensorProto

# Shape constants must stay in the graph file: shape inference reads them, and it never opens the data file.
_SMALL_TENSOR_BYTES = 1024
_BAND = 64
_ALIGNMENT = 4096  # a page, so that a runtime can map the weights instead of copying them


def data_path(path: Path) -> Path:
    """Returns where the weights of an ONNX file lie when they are not inside it."""
    return path.with_name(path.name + ".data")


@contextmanager
def weights_beside(path: Path, is_large: bool) -> Iterator[IO[bytes] | None]:
    """Gives the stream of the data file, or None after removing that of an earlier, larger model."""
    if not is_large:
        data_path(path).unlink(missing_ok=True)
        yield None
        return
    with data_path(path).open("wb") as stream:
        yield stream


def tensor_from_array(stream: IO[bytes] | None, location: str, name: str, array: NDArray[Any]) -> TensorProto:
    """Returns an array as a tensor, its bytes inside or in the data file.

    Args:
        stream: the data file; None puts the bytes inside.
        location: name of the data file.
        name: of the tensor.
        array: any strides.
    """
    from onnx import helper, numpy_helper

    plain = _row_by_row(array)
    if stream is None or plain.nbytes < _SMALL_TENSOR_BYTES:
        tensor: TensorProto = numpy_helper.from_array(plain, name)
        if stream is None or tensor.ByteSize() < _SMALL_TENSOR_BYTES:
            return tensor
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return _placed(stream, location, name, kind, plain.shape, plain.data)


def _row_by_row(array: NDArray[Any]) -> NDArray[Any]:
    """Returns an array as raw data is stored: row by row, little-endian."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.asarray(array, order="C")
    # In bands that stay in the cache: three times as fast as numpy's own copy of a transposed matrix.
    plain = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[1], _BAND):
        plain[:, start : start + _BAND] = array[:, start : start + _BAND]
    return plain


def moved_to(stream: IO[bytes] | None, location: str, tensor: TensorProto) -> TensorProto:
    """Returns a tensor that points into the data file; ``stream`` None writes nothing."""
    if tensor.ByteSize() < _SMALL_TENSOR_BYTES or not tensor.HasField("raw_data"):
        return tensor
    content = memoryview(b"" if stream is None else tensor.raw_data)
    return _placed(stream, location, tensor.name, tensor.data_type, tensor.dims, content)


def _placed(
    stream: IO[bytes] | None,
    location: str,
    name: str,
    data_type: int,
    dims: Sequence[int],
    content: memoryview,
) -> TensorProto:
    from onnx import TensorProto

    offset = length = 0
    if stream is not None:
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        offset = stream.tell()
        length = stream.write(content.cast("B"))
    moved = TensorProto(name=name, data_type=data_type, dims=dims)
    moved.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        moved.external_data.add(key=key, value=str(value))
    return moved


def check_external(path: Path, tensor: TensorProto) -> None:
    """Refuses a weight whose numbers are not in a file beside the graph, or not all of them.

    Args:
        path: the graph file.
        tensor: one that lies outside of it.

    Raises:
        SpecError: the file is missing, a link, too short, or somewhere else.
    """
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if not location or location in (".", "..") or os.path.basename(location) != location or "\\" in location:
        raise SpecError(
            f"{path.name}: weight {tensor.name} lies at {location!r}, expected a file beside the graph"
        )
    file = path.parent / location
    if file.is_symlink() or not file.is_file():
        raise SpecError(f"{path.name}: its weights {location} are missing; copy that file beside it")
    try:
        end = int(fields.get("offset", "0")) + int(fields.get("length", "0"))
    except ValueError as err:
        raise SpecError(f"{path.name}: weight {tensor.name} has a place that is no number") from err
    if file.stat().st_size < end:
        raise SpecError(
            f"{location}: found {file.stat().st_size} bytes, expected at least {end}; copy the file again"
        )
