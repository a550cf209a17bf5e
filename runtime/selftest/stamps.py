"""What the user cache remembers of full self-tests on a GPU: one small file for each one that passed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from runtime.backends.selection import BackendReport
from runtime.bundle.manifest import Manifest, canonical_json
from runtime.cache import cache_folder, read_cache_file, write_cache_file
from runtime.machine import cuda_device, installed_version

# The kernel driver of a server GPU, and the release of a Jetson's system, which holds its driver.
_DRIVER_FILES = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")
# What may have brought the library that runs an engine.
_LIBRARIES = (
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-cu12-bindings",
    "tensorrt-cu13-bindings",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12-bindings",
    "tensorrt-rtx-cu13-bindings",
)


class Stamp:
    """Whether one engine passed every law on this GPU, with this driver and this library.

    Args:
        manifest: of the opened bundle; its digest covers the engine's bytes.
        report: what was chosen in it.
        cache_dir: the user's cache folder, None for the default.
    """

    def __init__(
        self, manifest: Manifest, report: BackendReport, cache_dir: str | os.PathLike[str] | None
    ) -> None:
        self._facts = _facts(manifest, report)
        self._path: Path | None = None
        if self._facts is not None:
            name = hashlib.sha256(canonical_json(self._facts)).hexdigest()
            self._path = cache_folder(cache_dir) / "selftest" / name

    def exists(self) -> bool:
        """Says whether a full self-test passed here before."""
        return self._path is not None and read_cache_file(self._path) is not None

    def keep(self) -> None:
        """Remembers that a full self-test passed."""
        if self._path is not None:
            write_cache_file(self._path, json.dumps(self._facts).encode())


def is_on_gpu(report: BackendReport) -> bool:
    """Says whether the chosen engine runs on a GPU, where kernels differ from device to device."""
    return report.device != "cpu"


def _facts(manifest: Manifest, report: BackendReport) -> list[str] | None:
    device, driver = cuda_device(), _driver()
    if device is None or driver is None:
        return None
    libraries = [f"{name} {installed_version(name)}" for name in _LIBRARIES]
    engine = [manifest.digest, report.entry.file, report.entry.version, report.name]
    return [*engine, device.name, device.target, driver, *libraries]


def _driver() -> str | None:
    for name in _DRIVER_FILES:
        try:
            return Path(name).read_text(encoding="utf-8", errors="replace")[:4096]
        except OSError:
            continue
    return None
