"""Which format a stream is in: by its content, never by its name, and without decoding a pixel."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, TYPE_CHECKING

from runtime.errors import ImageError, ImageReadError, one_line

if TYPE_CHECKING:
    from PIL import ImageFile

# Only formats whose Pillow decoder works on the bytes alone; EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# Pillow warns above a limit of its own while it decodes these two, whatever limit the caller chose.
_FORMATS_THAT_WARN = ("GIF", "TIFF")
_warnings_lock = threading.Lock()
# Major brands of HEIF files that hold HEVC pictures, after "ftyp" at byte 4.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1")


def identified(stream: IO[bytes], name: str) -> ImageFile.ImageFile:
    """Returns a picture whose header has been read.

    It calls Pillow's format readers itself, because ``Image.open`` enforces a process-wide pixel limit of its
    own, and the limit here is the caller's.

    Raises:
        ImageError: empty, of no known format, or with a damaged header.
        ImageReadError: the stream fails, or memory is short.
    """
    from PIL import Image

    try:
        prefix = stream.read(16)
    except OSError as err:
        raise unreadable(err, name) from err
    if not prefix:
        raise ImageError(f"{name}: found an empty file, expected a picture; get the file again")
    Image.preinit()
    looks_like = ""
    for format_name in FORMATS:
        if format_name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(format_name, (None, None))
        if factory is None:
            continue
        if accept is not None and not _is_accepted(accept, prefix):
            continue
        image = _read_header(factory, stream, format_name, name)
        if image is not None:
            return image
        looks_like = format_name
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC_BRANDS:
        image = _read_header(_heif_reader(name), stream, "HEIF", name)
        if image is not None:
            return image
    if looks_like:
        raise ImageError(f"{name}: truncated or damaged {looks_like} header; get it again")
    raise ImageError(f"{name}: not a picture that can be read, expected one of {', '.join(FORMATS)}")


def unreadable(err: OSError, name: str) -> ImageReadError:
    """Returns the error of a file that opened and cannot be read: a bad disk, a network drive that left."""
    return ImageReadError(f"{name}: cannot be read ({err.strerror or one_line(err)}); check its drive")


def _is_accepted(accept: Callable[[bytes], bool | str], prefix: bytes) -> bool:
    try:
        answer = accept(prefix)
    except IndexError:  # Pillow 11 looks at the second byte of one
        return False
    # A text instead of True says that this Pillow was built without the format.
    return bool(answer) and not isinstance(answer, str)


@contextmanager
def pillow_limit_silenced(format_name: str | None) -> Iterator[None]:
    """Keeps Pillow from warning about a size that the caller allowed.

    The filters of warnings belong to the process until Python 3.14, hence one thread at a time, and only in
    the two formats that need it.
    """
    if format_name not in _FORMATS_THAT_WARN:
        yield
        return
    from PIL import Image

    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _read_header(
    factory: Callable[[IO[bytes], str], ImageFile.ImageFile], stream: IO[bytes], format_name: str, name: str
) -> ImageFile.ImageFile | None:
    """Returns None if the reader says that the format is another one."""
    stream.seek(0)
    try:
        with pillow_limit_silenced(format_name):
            return factory(stream, "")
    except (SyntaxError, IndexError, TypeError, KeyError, struct.error):
        return None  # what readers raise for "looks like mine but is not"
    except MemoryError as err:
        raise ImageReadError(f"{name}: not enough memory to read its {format_name} header") from err
    except Exception as err:
        if isinstance(err, OSError) and err.errno is not None:  # Pillow's own have no number
            raise unreadable(err, name) from err
        raise ImageError(f"{name}: damaged {format_name} header ({one_line(err)}); get it again") from err


def _heif_reader(name: str) -> Callable[[IO[bytes], str], ImageFile.ImageFile]:
    """Returns the plug-in's reader, without registering it for the rest of the process."""
    try:
        plugin = import_module("pillow_heif.as_plugin")
    except ImportError as err:
        raise ImageError(
            f"{name}: found HEIC, which Pillow alone cannot read; install pillow-heif or convert it to JPEG"
        ) from err
    reader: Callable[[IO[bytes], str], ImageFile.ImageFile] = plugin.HeifImageFile
    return reader
