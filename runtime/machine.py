"""What this machine has: a CUDA device, asked of the driver itself, CPUs and installed packages.

Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import lru_cache

_CUDA_LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
_MAJOR_ATTRIBUTE = 75
_MINOR_ATTRIBUTE = 76


@dataclass(frozen=True)
class CudaDevice:
    """The first CUDA device.

    Attributes:
        name: as the driver calls it.
        target: its compute capability as manifests spell it, such as "sm_87".
    """

    name: str
    target: str


@lru_cache(maxsize=1)
def cuda_device() -> CudaDevice | None:
    """Returns the first CUDA device that the driver offers, None without a driver or device."""
    driver = _cuda_driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value < 1:
        return None
    major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    calls = (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR_ATTRIBUTE, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR_ATTRIBUTE, device),
        driver.cuDeviceGetName(name, len(name), device),
    )
    if any(calls):
        return None
    return CudaDevice(name.value.decode("utf-8", "replace"), f"sm_{major.value}{minor.value}")


def usable_cpus() -> int:
    """Returns how many CPUs this process may run on: affinity counts, a quota of CPU time does not."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_version(*distributions: str) -> str | None:
    """Returns the version of the first of the named distributions that is installed, None if none is."""
    # Its import takes 15 ms, which a run on the CPU need not pay.
    from importlib import metadata

    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cuda_driver() -> ctypes.CDLL | None:
    for library in _CUDA_LIBRARIES:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
