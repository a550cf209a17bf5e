"""From a file, bytes, a Pillow picture or an array to RGB pixels: the one decoder of the project.

What it does to a picture: the first frame of an animation is taken; EXIF orientation is applied (an
unreadable EXIF block counts as none); transparency is flattened on white; palette, CMYK and other modes
become RGB by Pillow's own rules; of 16-bit samples the high byte is kept; embedded colour profiles are not
applied. Nothing is ever resized. Pillow is imported on the first call.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.names import printable_name

if TYPE_CHECKING:
    from typing import TypeAlias

    from PIL import Image

    Source: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
    )

MAX_PIXELS = 200_000_000

# Only formats whose Pillow decoder works on the bytes alone; EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

_ORIENTATION_TAG = 0x0112
# Pillow warns above a limit of its own while it decodes these two, whatever limit the caller chose.
_FORMATS_THAT_WARN = ("GIF", "TIFF")
_warnings_lock = threading.Lock()


def decode_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Returns the pixels of a picture as a viewer would show it.

    Args:
        source: a path, the bytes of a file, an open binary file, a Pillow picture, or a uint8 array
            ``[H, W, 3]`` or ``[H, W]``, which is taken as it is.
        max_pixels: larger pictures are refused from their header, before any pixel is decoded.

    Returns:
        uint8 ``[H, W, 3]``, RGB, contiguous. May share memory with an array that was given.

    Raises:
        ImageError: missing, not a picture, truncated, damaged, over the limit or of a pixel format whose
            scale is unknown; one line that names the file.
    """
    if isinstance(source, np.ndarray):
        return _pixels_from_array(source, max_pixels)
    from PIL import Image

    if isinstance(source, Image.Image):
        return _pixels_from_pillow(source, "picture", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = printable_name(path)
        with _open_regular(path, name) as stream:
            return _pixels_from_stream(stream, name, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _pixels_from_stream(io.BytesIO(source), "bytes", max_pixels)
    if hasattr(source, "read"):
        return _pixels_from_stream(_buffered(source), "file object", max_pixels)
    raise ImageError(
        f"found {type(source).__name__}, expected a path, bytes, a binary file, a Pillow picture or an array"
    )


def _pixels_from_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ImageError(f"array: found {array.dtype}, expected uint8; scale the values to 0..255 first")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ImageError(f"array: found shape {list(array.shape)}, expected [H, W, 3] or [H, W]")
    _check_size((array.shape[1], array.shape[0]), "array", max_pixels)
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    return np.ascontiguousarray(array)


def _open_regular(path: str, name: str) -> IO[bytes]:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{name}: found a folder, expected a picture file")
        # Opening a pipe would wait for a writer that may never come.
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name}: found a device, pipe or socket, expected a regular file")
        return open(path, "rb")
    except FileNotFoundError as err:
        raise ImageError(f"{name}: no such file; check the path") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or str(err)
        raise ImageError(f"{name}: cannot be opened ({reason}); check its name and permissions") from err


def _buffered(stream: Any) -> IO[bytes]:
    try:
        content = stream.read()
    except (OSError, ValueError) as err:
        raise ImageError(f"file object: cannot be read ({_one_line(err)})") from err
    if not isinstance(content, bytes):
        raise ImageError(f"file object: it reads {type(content).__name__}, expected bytes; open it with 'rb'")
    return io.BytesIO(content)


def _pixels_from_stream(stream: IO[bytes], name: str, max_pixels: int) -> NDArray[np.uint8]:
    image = _opened(stream, name)
    with image:
        return _pixels_from_pillow(image, name, max_pixels)


def _opened(stream: IO[bytes], name: str) -> Image.Image:
    """Identifies a picture without decoding it.

    It calls Pillow's format readers itself, because ``Image.open`` enforces a process-wide pixel limit of its
    own, and the limit here is the caller's.
    """
    from PIL import Image

    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name}: found an empty file, expected a picture; get the file again")
    Image.preinit()
    for format_name in FORMATS:
        if format_name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(format_name, (None, None))
        if factory is None:
            continue
        stream.seek(0)
        try:
            # A text instead of True says that this Pillow was built without the format.
            if accept is not None and (not accept(prefix) or isinstance(accept(prefix), str)):
                continue
            with _pillow_limit_silenced() if format_name in _FORMATS_THAT_WARN else nullcontext():
                return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, KeyError, struct.error):
            continue  # what readers raise for "looks like mine but is not"
        except Exception as err:
            raise ImageError(f"{name}: damaged {format_name} header ({_one_line(err)})") from err
    raise ImageError(f"{name}: not a picture that can be read, expected one of {', '.join(FORMATS)}")


def _pixels_from_pillow(image: Image.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    _check_size(image.size, name, max_pixels)
    try:
        with _pillow_limit_silenced() if image.format in _FORMATS_THAT_WARN else nullcontext():
            image.load()
        upright = _rgb_from_pillow(image, name)
        turn = _turn(image)
        if turn is not None:
            upright = upright.transpose(turn)
        return np.array(upright, dtype=np.uint8)
    except ImageError:
        raise
    except MemoryError as err:
        width, height = image.size
        raise ImageError(f"{name}: not enough memory for {width} x {height} pixels") from err
    except Exception as err:  # on hostile bytes decoders raise anything, down to KeyError and SyntaxError
        raise ImageError(f"{name}: truncated or damaged picture ({_one_line(err)}); get it again") from err


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: found {width} x {height} pixels, expected at least one")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: found {width} x {height} pixels, expected at most {max_pixels} in all; "
            "raise the limit (--max-pixels) if the file is to be trusted"
        )


def _rgb_from_pillow(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name}: found 32-bit samples of unknown range, expected 8 or 16 bits; convert it to 8 bits"
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(layered.convert("RGB"), mask=layered.getchannel("A"))
        return flat
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> NDArray[np.uint8]:
    # Pillow reads 16-bit colour by its high byte; grey must come out the same.
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return grey


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what undoes the EXIF orientation.

    Call it after load(), because Pillow itself turns a TIFF while loading it.
    """
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # free-form bytes beside intact pixels: viewers ignore what they cannot parse
        return None
    return turns.get(orientation) if isinstance(orientation, int) else None


@contextmanager
def _pillow_limit_silenced() -> Iterator[None]:
    # The warning filters are process-wide until Python 3.14, hence one thread at a time.
    from PIL import Image

    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _one_line(err: BaseException) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= 200 else text[:200] + "..."
