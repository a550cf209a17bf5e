"""Bytes of a picture as a seekable stream: regular files alone are opened, other streams are read first."""

from __future__ import annotations

import io
import os
import stat
from typing import IO, Any

from runtime.errors import ImageError, ImageReadError, one_line


def open_regular(path: str, name: str) -> IO[bytes]:
    """Opens a file for reading.

    Raises:
        ImageError: it is missing, a folder or a pipe; the message names it.
        ImageReadError: it cannot be opened.
    """
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
        raise ImageReadError(f"{name}: cannot be opened ({reason}); check its name and permissions") from err


def buffered(stream: Any, name: str) -> IO[bytes]:
    """Returns what is left in a binary stream, in memory: it may be a socket, which cannot go back.

    Raises:
        ImageError: it reads text.
        ImageReadError: it fails.
    """
    try:
        content = stream.read()
    except (OSError, ValueError) as err:
        raise ImageReadError(f"{name}: cannot be read ({one_line(err)}); open it again") from err
    if not isinstance(content, bytes):
        raise ImageError(f"{name}: it reads {type(content).__name__}, expected bytes; open it with 'rb'")
    return io.BytesIO(content)
