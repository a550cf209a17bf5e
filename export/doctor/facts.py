"""The facts about a machine, each from a probe of its own: one that fails says so and costs no other one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import export
from export.doctor.child import ProbeError
from export.doctor.machine import Machine
from runtime import __version__
from runtime.errors import kind_and_line
from runtime.names import printable_name

_CUDA_PACKAGES = ("cuda-python", "cuda-bindings", "cuda-core", "pycuda", "cupy-cuda12x", "cupy-cuda13x")
_TOOLS = ("onnx", "numpy", "pillow", "click", "triton", "transformers")
_DPKG = re.compile(r"nvidia-jetpack|nvidia-l4t-core|tensorrt|libnvinfer\d+|python3-libnvinfer")
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")


@dataclass(frozen=True)
class Fact:
    """One thing that a machine has or lacks.

    Attributes:
        name: what it is about.
        value: JSON value; None when it is absent or could not be read.
        error: why it could not be read, None when it could.
    """

    name: str
    value: Any
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns value and error."""
        return {"value": self.value, "error": self.error}


def gather(machine: Machine) -> dict[str, Fact]:
    """Asks every probe; none of them can end the others."""
    facts = {}
    for name, probe in _PROBES.items():
        try:
            facts[name] = Fact(name, probe(machine))
        except ProbeError as err:
            facts[name] = Fact(name, None, str(err))
        except Exception as err:
            facts[name] = Fact(name, None, kind_and_line(err, 200))
    return facts


def _jetpack(machine: Machine) -> dict[str, Any] | None:
    """Returns what says that this is a Jetson, None when nothing does."""
    release = machine.text("/etc/nv_tegra_release")
    match = _RELEASE.search(release or "")
    packages = _dpkg_packages(machine.text("/var/lib/dpkg/status") or "")
    model = (machine.text("/proc/device-tree/model") or "").strip("\0\n ")
    is_tegra = str(machine.platform()["release"]).endswith("-tegra")
    if release is None and not is_tegra and "nvidia-l4t-core" not in packages:
        return None
    return {
        "l4t": f"{match[1]}.{match[2]}" if match else packages.get("nvidia-l4t-core"),
        "jetpack": packages.get("nvidia-jetpack"),
        "model": model or None,
        "packages": packages,
    }


def _dpkg_packages(status: str) -> dict[str, str]:
    """Returns name and version of the installed packages that decide what a Jetson can run."""
    found = {}
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        name = fields.get("Package", "")
        if _DPKG.fullmatch(name) and fields.get("Status", "").endswith(" installed"):
            found[name] = fields.get("Version", "")
    return found


def _driver(machine: Machine) -> dict[str, Any]:
    answer = dict(machine.ask("cuda"))
    if answer["driver"] and not answer.get("release"):
        version = re.search(r"Kernel Module\D*([\d.]+)", machine.text("/proc/driver/nvidia/version") or "")
        answer["release"] = version[1] if version else None
    return answer


def _cuda_runtime(machine: Machine) -> dict[str, Any]:
    wheels = {n: v for n, v in machine.distributions.items() if n.startswith("nvidia-cuda-runtime")}
    toolkit = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', _toolkit_text(machine))
    return {
        "library": machine.ask("cuda-runtime")["version"],
        "packages": wheels,
        "toolkit": toolkit[1] if toolkit else None,
    }


def _toolkit_text(machine: Machine) -> str:
    return machine.text("/usr/local/cuda/version.json") or ""


def _trt(question: str) -> Callable[[Machine], dict[str, Any]]:
    def probe(machine: Machine) -> dict[str, Any]:
        packages = {n: v for n, v in machine.distributions.items() if n.startswith("tensorrt")}
        is_rtx = question == "tensorrt-rtx"
        mine = {n: v for n, v in packages.items() if n.startswith("tensorrt-rtx") == is_rtx}
        return machine.ask(question) | {"packages": mine}

    return probe


def _onnxruntime(machine: Machine) -> dict[str, Any]:
    packages = {n: v for n, v in machine.distributions.items() if n.startswith("onnxruntime")}
    return machine.ask("onnxruntime") | {"packages": packages}


def _torch(machine: Machine) -> dict[str, Any] | None:
    """Returns torch's version and the CUDA that it was built for, without importing it."""
    version = machine.distributions.get("torch")
    if version is None:
        return None
    folder = machine.module_folder("torch")
    stated = folder / "version.py" if folder else None
    text = stated.read_text(encoding="utf-8") if stated is not None and stated.is_file() else ""
    cuda = re.search(r"^cuda\b[^=\n]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return {"version": version, "cuda": cuda[1] if cuda else None}


def _kernels(machine: Machine) -> dict[str, Any]:
    ours = Path(export.__file__).parent.parent / "kernels"
    found = machine.module_folder("kernels")
    return {
        "ours": found is not None and found.resolve() == ours.resolve(),
        "found": None if found is None else printable_name(str(found)),
        "foreign_package": machine.distributions.get("kernels"),
    }


def memory_facts(machine: Machine) -> dict[str, Any]:
    """Returns free and total memory, swap, and the limit of the container, in bytes.

    Raises:
        ProbeError: the system does not say.
    """
    text = machine.text("/proc/meminfo")
    if text is None:
        raise ProbeError("this system has no /proc/meminfo")
    sizes = {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    limit = (machine.text("/sys/fs/cgroup/memory.max") or "").strip()
    return {
        "available_bytes": sizes["MemAvailable"],
        "total_bytes": sizes["MemTotal"],
        "swap_bytes": sizes.get("SwapTotal", 0),
        "limit_bytes": int(limit) if limit.isdigit() else None,
    }


def _disk(machine: Machine) -> dict[str, Any]:
    return {name: machine.disk(folder) for name, folder in machine.folders().items()}


def _packages(names: tuple[str, ...]) -> Callable[[Machine], dict[str, str]]:
    return lambda machine: {n: machine.distributions[n] for n in names if n in machine.distributions}


_PROBES: dict[str, Callable[[Machine], Any]] = {
    "dgsnet": lambda _machine: __version__,
    "python": lambda machine: machine.python(),
    "system": lambda machine: machine.platform(),
    "jetpack": _jetpack,
    "driver": _driver,
    "cuda runtime": _cuda_runtime,
    "tensorrt": _trt("tensorrt"),
    "tensorrt-rtx": _trt("tensorrt-rtx"),
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "kernels": _kernels,
    "cuda packages": _packages(_CUDA_PACKAGES),
    "tools": _packages(_TOOLS),
    "memory": memory_facts,
    "disk": _disk,
}
