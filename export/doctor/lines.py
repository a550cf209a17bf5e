"""One line a fact, for a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export.doctor.facts import Fact

_GIB = 2**30


def fact_line(fact: Fact) -> str:
    """Returns what a fact says; one that could not be read says why."""
    if fact.error is not None:
        return f"could not be read ({fact.error})"
    if fact.value is None:
        return "none"
    return _LINES.get(fact.name, _plain)(fact.value)


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in value.items()) or "none"


def _python(value: dict[str, Any]) -> str:
    seen = "sees" if value["system_site_packages"] else "does not see"
    place = (
        f"virtual environment that {seen} the system's packages" if value["virtual_environment"] else "system"
    )
    return f"{value['version']} ({value['implementation']}), {place}"


def _system(value: dict[str, Any]) -> str:
    return f"{value['system']} {value['release']}, {value['arch']}, {value['cores']} cores"


def _jetpack(value: dict[str, Any]) -> str:
    parts = [
        f"L4T {value['l4t'] or 'not stated'}",
        f"JetPack {value['jetpack'] or 'not stated by dpkg'}",
        value["model"] or "",
        _plain({n: v for n, v in value["packages"].items() if not n.startswith("nvidia")}),
    ]
    return ", ".join(part for part in parts if part and part != "none")


def _driver(value: dict[str, Any]) -> str:
    if not value["driver"]:
        return f"none ({value['reason']})"
    devices = [
        f"{d['name']} ({d['target']}, {d['memory_bytes'] / _GIB:.1f} GiB{', integrated' * d['integrated']})"
        for d in value["devices"]
    ]
    release = f"{value['release']}, " if value["release"] else ""
    return f"{release}serves CUDA {value['cuda']}; {'; '.join(devices) or 'no device: ' + value['reason']}"


def _cuda_runtime(value: dict[str, Any]) -> str:
    parts = [f"library {value['library']}" if value["library"] else "no library on the loader's path"]
    parts += [f"{name} {version}" for name, version in value["packages"].items()]
    parts += [f"toolkit {value['toolkit']}"] * bool(value["toolkit"])
    return ", ".join(parts)


def _trt(value: dict[str, Any]) -> str:
    if not value["usable"]:
        installed = _plain(value["packages"])
        return "none" if installed == "none" else f"installed but not usable: {installed}"
    targets = f", targets {' '.join(value['targets'])}" if value["targets"] else ""
    return f"{value['version']} (module {value['module']}){targets}"


def _onnxruntime(value: dict[str, Any]) -> str:
    if not value["usable"]:
        return f"not usable ({value['reason']})"
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in value["providers"])
    links = value["tensorrt_provider_needs"]
    linked = f", its TensorRT provider links {', '.join(links)}" if links else ""
    return f"{value['version']} ({_plain(value['packages'])}), providers {providers}{linked}"


def _torch(value: dict[str, Any]) -> str:
    return f"{value['version']}, built for {'CUDA ' + value['cuda'] if value['cuda'] else 'the CPU'}"


def _kernels(value: dict[str, Any]) -> str:
    return "dgsnet's own" if value["ours"] else f"not dgsnet's: {value['found'] or 'none found'}"


def _memory(value: dict[str, Any]) -> str:
    limit = f", limited to {value['limit_bytes'] / _GIB:.1f} GiB" if value["limit_bytes"] else ""
    return (
        f"{value['available_bytes'] / _GIB:.1f} GiB free of {value['total_bytes'] / _GIB:.1f}, "
        f"swap {value['swap_bytes'] / _GIB:.1f}{limit}"
    )


def _disk(value: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {entry['free_bytes'] / _GIB:.1f} GiB free{'' if entry['writable'] else ' (not writable)'}"
        for name, entry in value.items()
    )


_LINES: dict[str, Callable[[Any], str]] = {
    "dgsnet": str,
    "python": _python,
    "system": _system,
    "jetpack": _jetpack,
    "driver": _driver,
    "cuda runtime": _cuda_runtime,
    "tensorrt": _trt,
    "tensorrt-rtx": _trt,
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "kernels": _kernels,
    "memory": _memory,
    "disk": _disk,
}
