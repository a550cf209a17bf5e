"""Whatever a picture comes as, to its pixels, within limits that are checked before any pixel is decoded."""

from __future__ import annotations

import io
import logging
import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.decode.formats import identified, pillow_limit_silenced, unreadable
from runtime.decode.limits import MAX_PIXELS, MAX_SIDE, DecodeLimits
from runtime.decode.pillow_pixels import PillowPixels
from runtime.decode.streams import buffered, open_regular
from runtime.errors import ImageError, ImageReadError, one_line
from runtime.names import printable_name
from runtime.patches.pixels import ArrayPixels

if TYPE_CHECKING:
    from typing import TypeAlias

    from PIL import Image

    from runtime.decode.budget import PixelHold
    from runtime.patches.pixels import Pixels

    Source: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
    )

logger = logging.getLogger("dgsnet.decode")

# Decoded from the top to the bottom, so that what came before the end is there; MPO is a JPEG with a preview.
_DECODED_IN_ORDER = ("JPEG", "MPO", "PNG", "BMP", "PPM")
# Up to here one conversion of everything is quicker than one for each patch that is looked at.
_WHOLE_PIXELS = 1 << 22


def decode_image(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    allow_truncated: bool = False,
) -> NDArray[np.uint8]:
    """Returns the pixels of a picture as a viewer would show it.

    Args:
        source: a path, the bytes of a file, an open binary file, a Pillow picture, or a uint8 array
            ``[H, W, 3]`` or ``[H, W]``, which is taken as it is.
        max_pixels: larger pictures are refused from their header, before any pixel is decoded.
        max_side: likewise, for width and height each.
        allow_truncated: take a JPEG, PNG, BMP or PNM that ends early as far as it goes; the rest is black.

    Returns:
        uint8 ``[H, W, 3]``, RGB, contiguous. May share memory with an array that was given.

    Raises:
        ImageError: missing, not a picture, truncated, damaged, over the limit or of a pixel format whose
            scale is unknown; one line that names the file.
        UsageError: a limit below 1.
    """
    pixels = _decoded(source, source_name(source), DecodeLimits(max_pixels, max_side, allow_truncated))
    return pixels.whole() if isinstance(pixels, PillowPixels) else np.ascontiguousarray(pixels)


def read_pixels(
    source: Source,
    *,
    name: str | None = None,
    limits: DecodeLimits | None = None,
    hold: PixelHold | None = None,
) -> Pixels:
    """Returns the same pixels as ``decode_image``, of a large picture without a second copy of them.

    Args:
        source: as ``decode_image`` takes it.
        name: what messages call it; None for the path, or for what it is.
        limits: None for the default ones.
        hold: where room for the pixels is waited for once the header has told their number; None needs none.
            An array's are there already.

    Raises:
        ImageError: as ``decode_image``.
    """
    pixels = _decoded(source, name or source_name(source), limits or DecodeLimits(), hold)
    if isinstance(pixels, PillowPixels):
        if pixels.height * pixels.width > _WHOLE_PIXELS:
            return pixels
        pixels = pixels.whole()
    return ArrayPixels(pixels)


def source_name(source: Source) -> str:
    """Returns what messages call a source: its path, printable and on one line, or what it is."""
    if isinstance(source, (str, os.PathLike)):
        return printable_name(os.fsdecode(source))
    if isinstance(source, np.ndarray):
        return "array"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "bytes"
    return "file object" if hasattr(source, "read") else "picture"


def _decoded(
    source: Source, name: str, limits: DecodeLimits, hold: PixelHold | None = None
) -> PillowPixels | NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _checked_array(source, name, limits)
    from PIL import Image

    if isinstance(source, Image.Image):
        return _loaded(source, name, limits, hold)
    stream: IO[bytes]
    if isinstance(source, (str, os.PathLike)):
        stream = open_regular(os.fsdecode(source), name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        stream = io.BytesIO(source)
    elif hasattr(source, "read"):
        stream = buffered(source, name)
    else:
        raise ImageError(
            f"found {type(source).__name__}, expected a path, bytes, a binary file, a Pillow picture or an "
            "array"
        )
    with stream:
        return _loaded(identified(stream, name), name, limits, hold)


def _checked_array(array: NDArray[Any], name: str, limits: DecodeLimits) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ImageError(f"{name}: found {array.dtype}, expected uint8; scale the values to 0..255 first")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ImageError(f"{name}: found shape {list(array.shape)}, expected [H, W, 3] or [H, W]")
    limits.check((array.shape[1], array.shape[0]), name)
    if array.ndim == 2:
        return np.broadcast_to(array[:, :, np.newaxis], (*array.shape, 3))
    return array


def _loaded(image: Image.Image, name: str, limits: DecodeLimits, hold: PixelHold | None) -> PillowPixels:
    limits.check(image.size, name)
    if hold is not None:
        hold.take(image.width * image.height)
    try:
        with pillow_limit_silenced(image.format):
            image.load()
    except MemoryError as err:
        width, height = image.size
        raise ImageReadError(f"{name}: not enough memory for {width} x {height} pixels") from err
    except Exception as err:  # on hostile bytes decoders raise anything, down to KeyError and SyntaxError
        if isinstance(err, OSError) and err.errno is not None:  # Pillow's own have no number
            raise unreadable(err, name) from err
        if image.format not in _DECODED_IN_ORDER or not _is_truncation(err):
            raise ImageError(f"{name}: truncated or damaged picture ({one_line(err)}); get it again") from err
        if not limits.allow_truncated:
            raise ImageError(
                f"{name}: truncated picture ({one_line(err)}); get it again, or allow it (--allow-truncated)"
            ) from err
        logger.warning("%s: truncated; what is missing is taken as black", name)
        # What came before the end has been decoded. Nothing left to decode: Pillow has a switch for this,
        # but for the whole process.
        image.tile = []  # type: ignore[attr-defined]
    # A header of a later frame or tile may have changed it.
    limits.check(image.size, name)
    return PillowPixels(image, name)


def _is_truncation(err: BaseException) -> bool:
    return isinstance(err, OSError) and "truncated" in str(err)
