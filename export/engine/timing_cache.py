"""Kernel timings kept between builds: a file for each GPU and TensorRT, whole at every moment."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.engine.options import BuildOptions
from export.engine.trt_module import TrtModule
from runtime.cache import cache_folder
from runtime.errors import UsageError
from runtime.files import write_atomically
from runtime.machine import CudaDevice

if TYPE_CHECKING:
    import tensorrt

logger = logging.getLogger("dgsnet.export.engine")

_LARGEST_BYTES = 256 << 20
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class TimingCacheFile:
    """Where timings are kept.

    Attributes:
        path: the file, which need not exist.
        is_named: whether the user named it; one of ours that does not fit is begun anew.
    """

    path: Path
    is_named: bool


def timing_cache_file(
    trt: TrtModule, gpu: CudaDevice | None, options: BuildOptions
) -> TimingCacheFile | None:
    """Returns the file of a build, None where timings are not kept.

    Raises:
        UsageError: a file was named and the backend keeps no timings, or its folder is missing.
    """
    if options.timing_cache is not None:
        if not trt.has_timing_cache:
            raise UsageError(
                f"--timing-cache: {trt.backend} keeps no timings; leave it out or use --backend tensorrt"
            )
        folder = options.timing_cache.absolute().parent
        if not folder.is_dir() or options.timing_cache.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(
                f"--timing-cache {options.timing_cache}: expected a file name in a folder that can be written"
            )
        return TimingCacheFile(options.timing_cache.absolute(), is_named=True)
    if not options.use_timing_cache or not trt.has_timing_cache or gpu is None:
        return None
    device = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    name = f"{device}_{gpu.target.replace('_', '')}_trt{trt.version}.timings"
    return TimingCacheFile(cache_folder() / "timings" / name, is_named=False)


def use_timings(config: tensorrt.IBuilderConfig, file: TimingCacheFile) -> bytes:
    """Gives a build the timings of a file and returns the bytes that were read.

    Raises:
        UsageError: the named file is of another TensorRT or GPU, or is no timing cache.
    """
    known = _read(file)
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, False):
        return known
    if file.is_named:
        raise UsageError(
            f"{file.path.name}: found no timings of this TensorRT and GPU, expected some; name another file"
        )
    logger.warning("%s: not usable here, begun anew", file.path.name)
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return b""


def keep_timings(config: tensorrt.IBuilderConfig, file: TimingCacheFile, read: bytes) -> bool:
    """Writes the timings of a finished build, together with what another build has written meanwhile.

    Args:
        config: of the finished build.
        file: where to.
        read: what ``use_timings`` returned.

    Returns:
        Whether they were written. If not, the next build takes longer and that is all, so it is a warning.
    """
    cache = config.get_timing_cache()
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with _one_writer(file.path):
            newer = _read(file)
            other = config.create_timing_cache(newer) if newer not in (read, b"") else None
            if other is not None and not cache.combine(other, False):
                logger.warning("%s: replaced, it held timings that do not fit", file.path.name)
            write_atomically(file.path, memoryview(cache.serialize()))
    except OSError as err:
        logger.warning("%s: kernel timings not kept (%s)", file.path, err.strerror or err)
        return False
    return True


def _read(file: TimingCacheFile) -> bytes:
    try:
        with file.path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except OSError:
        return b""
    return content if len(content) <= _LARGEST_BYTES else b""


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """Holds the file's lock; after some seconds goes on without it, as each write replaces a whole file."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not _locked(descriptor) and time.monotonic() < end:
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
