"""What a machine can build and run, one row a backend, concluded from the facts alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from export.doctor.facts import Fact
from runtime.errors import UsageError

BACKEND_ROWS = ("onnxruntime:cpu", "onnxruntime:cuda", "tensorrt", "tensorrt-rtx")
PARTS = ("build", "run")

_NO_DEVICE = "no CUDA device"
_Facts = dict[str, Fact]


@dataclass(frozen=True)
class Verdict:
    """Whether something can be done here; the reason says what stands in the way and what to do about it."""

    able: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns both fields."""
        return {"able": self.able, "reason": self.reason}


@dataclass(frozen=True)
class BackendRow:
    """What can be done with one backend.

    Attributes:
        backend: one of ``BACKEND_ROWS``.
        build: whether ``build-engine`` can make what this backend runs.
        run: whether this machine can run it.
    """

    backend: str
    build: Verdict
    run: Verdict

    def verdict(self, part: str) -> Verdict:
        """Returns the verdict on "build" or "run"."""
        return self.build if part == "build" else self.run

    def to_json(self) -> dict[str, Any]:
        """Returns the row."""
        return {"backend": self.backend, "build": self.build.to_json(), "run": self.run.to_json()}


def judge(facts: dict[str, Fact]) -> list[BackendRow]:
    """Returns one row for each of ``BACKEND_ROWS``."""
    rows = []
    for backend in BACKEND_ROWS:
        family, _, device = backend.partition(":")
        build = _build_onnxruntime if device else _build_trt
        run = _run_onnxruntime if device else _run_trt
        rows.append(BackendRow(backend, build(facts, device or family), run(facts, device or family)))
    return rows


def asked_row(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the row and its parts that ``BACKEND``, ``BACKEND:build`` or ``BACKEND:run`` asks for.

    ``onnxruntime`` without a device is the row of the CPU, where it always runs.

    Raises:
        UsageError: no such backend or part.
    """
    backend, _, part = text.rpartition(":")
    if part not in PARTS:
        backend, part = text, ""
    row = "onnxruntime:cpu" if backend == "onnxruntime" else backend
    if row not in BACKEND_ROWS:
        raise UsageError(
            f"--for: found {text!r}, expected one of {', '.join(BACKEND_ROWS)}, with :build or :run behind "
            "it if only that matters"
        )
    return row, (part,) if part else PARTS


def _build_onnxruntime(facts: _Facts, device: str) -> Verdict:
    tools, runtime = facts["tools"].value or {}, facts["onnxruntime"]
    obstacles = []
    if "onnx" not in tools:
        obstacles.append('onnx is not installed; pip install "dgsnet[export]"')
    if runtime.error:
        obstacles.append(f"onnxruntime could not be read ({runtime.error}); reinstall it")
    elif not runtime.value["usable"]:
        obstacles.append(
            f'onnxruntime does not import ({runtime.value["reason"]}); pip install "dgsnet[cpu]"'
        )
    elif runtime.value["opens"]["cpu"]:
        obstacles.append(f"onnxruntime cannot compare graphs here ({runtime.value['opens']['cpu']})")
    made = "model.onnx, the same file for every device; " if device == "cuda" else "model.onnx; "
    return _verdict(obstacles, made + _sources(facts))


def _build_trt(facts: _Facts, backend: str) -> Verdict:
    obstacles = _module_obstacles(facts, backend)
    if backend == "tensorrt":
        obstacles += _device_obstacles(facts, "TensorRT builds on the GPU that will run the engine")
    module = facts[backend].value or {}
    made = f"{backend} {module.get('version')}"
    if backend == "tensorrt-rtx" and not obstacles:
        made += f" builds without a GPU for {', '.join(module['targets'])}"
    return _verdict(obstacles, f"{made}; {_sources(facts, from_bundle=True)}")


def _sources(facts: _Facts, *, from_bundle: bool = False) -> str:
    tools = facts["tools"].value or {}
    able = facts["torch"].value is not None and "onnx" in tools
    if able:
        return "from a checkpoint, an ONNX file or a bundle" if from_bundle else "from a checkpoint or ONNX"
    source = "a bundle" if from_bundle else "an ONNX file"
    return f'from {source}; for checkpoints pip install "dgsnet[train,export]"'


def _run_onnxruntime(facts: _Facts, device: str) -> Verdict:
    fact = facts["onnxruntime"]
    extra = "gpu" if device == "cuda" else "cpu"
    if fact.error:
        return Verdict(False, f"onnxruntime could not be read ({fact.error}); reinstall it")
    value = fact.value
    if not value["usable"]:
        return Verdict(
            False, f'onnxruntime does not import ({value["reason"]}); pip install "dgsnet[{extra}]"'
        )
    obstacles = []
    reason = value["opens"][device]
    if device == "cuda":
        obstacles += _device_obstacles(facts, "onnxruntime:cpu runs without one")
    if reason and device == "cuda" and "CUDAExecutionProvider" not in value["providers"]:
        obstacles.append(
            f"onnxruntime {value['version']} was built without CUDA; pip uninstall onnxruntime, then "
            'pip install "dgsnet[gpu]" (on JetPack 6 a wheel made for it)'
        )
    elif reason and not (device == "cuda" and obstacles):
        obstacles.append(f"onnxruntime {value['version']} does not open there: {reason}")
    refusal = value["refusal"][device]
    if refusal and not obstacles:
        obstacles.append(f"dgsnet's runtime refuses: {refusal}")
    return _verdict(obstacles, f"onnxruntime {value['version']} opened and ran a graph there")


def _run_trt(facts: _Facts, backend: str) -> Verdict:
    obstacles = _module_obstacles(facts, backend)
    obstacles += _device_obstacles(facts, "engines run on a GPU only; onnxruntime:cpu runs without one")
    module, device = facts[backend].value or {}, _device(facts)
    if device is not None and module.get("usable"):
        target, targets = device["target"], module["targets"]
        if targets and target not in targets:
            obstacles.append(
                f"{device['name']} is {target}, {backend} {module['version']} serves {', '.join(targets)} "
                "only; use tensorrt"
            )
        obstacles += _driver_obstacles(facts, module)
        if module.get("refusal") and not obstacles:
            obstacles.append(f"dgsnet's runtime refuses: {module['refusal']}")
    return _verdict(obstacles, f"{backend} {module.get('version')} on {device['name'] if device else ''}")


def _module_obstacles(facts: _Facts, backend: str) -> list[str]:
    fact = facts[backend]
    if fact.error:
        return [f"{backend} could not be read ({fact.error}); reinstall it"]
    if fact.value["usable"]:
        return []
    reason, python, jetpack = fact.value["reason"], facts["python"].value, facts["jetpack"].value
    if jetpack and backend == "tensorrt" and python and not python["system_site_packages"]:
        reason += "; this virtual environment cannot see JetPack's: make it anew with --system-site-packages"
    return [reason]


def _device_obstacles(facts: _Facts, remark: str) -> list[str]:
    fact = facts["driver"]
    if fact.error:
        return [f"{_NO_DEVICE}: the driver could not be read ({fact.error}); {remark}"]
    if fact.value["devices"]:
        return []
    cure = "check the driver and CUDA_VISIBLE_DEVICES" if fact.value["driver"] else "install NVIDIA's driver"
    return [f"{_NO_DEVICE} ({fact.value['reason']}); {cure}; {remark}"]


def _driver_obstacles(facts: _Facts, module: dict[str, Any]) -> list[str]:
    """Refuses a package that was built for a newer major version of CUDA than the driver serves."""
    built = [int(number) for name in module["packages"] for number in re.findall(r"-cu(\d+)", name)]
    served = str(facts["driver"].value.get("cuda", "")).partition(".")[0]
    if not built or not served.isdigit() or max(built) <= int(served):
        return []
    return [
        f"its package is for CUDA {max(built)}, the driver serves CUDA {facts['driver'].value['cuda']}; "
        "update the driver, or install the package for the older CUDA"
    ]


def _device(facts: _Facts) -> dict[str, Any] | None:
    devices: list[dict[str, Any]] = (facts["driver"].value or {}).get("devices", [])
    return devices[0] if devices else None


def _verdict(obstacles: list[str], success: str) -> Verdict:
    return Verdict(not obstacles, "; ".join(obstacles) or success)
