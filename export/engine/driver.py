"""The version of the CUDA driver, which a manifest records beside the GPU that an engine was built on."""

from __future__ import annotations

import ctypes


def driver_version() -> str | None:
    """Returns "cuda <major>.<minor>", the newest CUDA that the driver serves; None without a driver."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if status else f"cuda {version.value // 1000}.{version.value % 1000 // 10}"
