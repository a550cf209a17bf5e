"""File names on their way to a person or to JSON: any bytes in, one line of valid text out."""

from __future__ import annotations

import os


def utf8_name(path: str) -> str:
    """Returns the name as valid Unicode; bytes that are not UTF-8 become U+FFFD."""
    return path if is_utf8(path) else name_bytes(path).decode("utf-8", "replace")


def name_bytes(path: str) -> bytes:
    """Returns the bytes that the file system knows the name by."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        # A lone surrogate that no file system gave us: no such file exists, but the name must still be shown.
        return path.encode("utf-8", "surrogatepass")


def is_utf8(path: str) -> bool:
    """Says whether the name is valid Unicode, that is, without the escapes that ``os.fsdecode`` leaves."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable_name(path: str) -> str:
    """Returns the name for a terminal: valid Unicode, with control characters escaped, on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in utf8_name(path))
