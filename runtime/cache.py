"""The user's cache folder. All of it may be deleted at any time, and nothing needs it to be writable.

Standard library only.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger("dgsnet.cache")


def cache_folder(override: str | os.PathLike[str] | None = None) -> Path:
    """Returns where caches go.

    ``override``, else $DGSNET_CACHE, else $XDG_CACHE_HOME/dgsnet, else ~/.cache/dgsnet.
    The folder need not exist.
    """
    if override is not None:
        return Path(override)
    if own := os.environ.get("DGSNET_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    base = shared if os.path.isabs(shared) else os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "dgsnet")


def write_cache_file(path: Path, content: bytes) -> bool:
    """Writes a small cache file so that readers see all of it or nothing.

    Returns:
        Whether it was written; a cache that cannot be written costs time, not correctness.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.tmp-")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except OSError as err:
        logger.debug("cache file %s not written: %s", path, err)
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True


def read_cache_file(path: Path, limit: int = 65536) -> bytes | None:
    """Returns a cache file's content, None when it is missing, unreadable or longer than ``limit`` bytes."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except OSError:
        return None
    return content if len(content) <= limit else None
