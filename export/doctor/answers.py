"""What a child process of doctor finds out by loading drivers and modules, which may crash it.

Run by ``export/doctor/child.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.doctor.child import answer_with
from runtime.errors import MissingDependencyError, one_line

# One Neg of one float32, opset 18: the smallest model that shows whether a provider really opens and runs.
_TINY_MODEL = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
_INTEGRATED = 18
_CUDART = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_ONLY_FATAL = 4


def main(question: str) -> None:
    """Answers one question, on standard output."""
    answer_with(_QUESTIONS[question])


def _cuda() -> dict[str, Any]:
    library, reason = _first_library(("libcuda.so.1", "libcuda.so"))
    if library is None:
        return {"driver": False, "reason": reason, "devices": []}
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    answer: dict[str, Any] = {
        "driver": True,
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "release": _driver_release(),
        "devices": [],
        "reason": None,
    }
    for status in (library.cuInit(0), library.cuDeviceGetCount(ctypes.byref(count))):
        if status:
            answer["reason"] = f"{_error_name(library, status)} (CUDA error {status})"
            return answer
    answer["devices"] = [_device(library, k) for k in range(count.value)]
    if not answer["devices"]:
        answer["reason"] = "the driver lists no device"
    return answer


def _device(library: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor, integrated = (_attribute(library, device, number) for number in (75, 76, _INTEGRATED))
    return {
        "name": name.value.decode("utf-8", "replace"),
        "target": f"sm_{major}{minor}",
        "memory_bytes": memory.value,
        "integrated": bool(integrated),
    }


def _attribute(library: ctypes.CDLL, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int()
    status = library.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    if status:
        raise RuntimeError(f"cuDeviceGetAttribute({number}) failed with {_error_name(library, status)}")
    return value.value


def _error_name(library: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(text))
    return (text.value or b"unknown error").decode("ascii", "replace")


def _driver_release() -> str | None:
    """Returns the release of the driver as NVML states it; a Jetson before JetPack 7 has no NVML."""
    library, _reason = _first_library(("libnvidia-ml.so.1",))
    if library is None or library.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    status = library.nvmlSystemGetDriverVersion(text, len(text))
    library.nvmlShutdown()
    return None if status else text.value.decode("ascii", "replace")


def _cuda_runtime() -> dict[str, Any]:
    library, reason = _first_library(_CUDART)
    if library is None:
        return {"version": None, "reason": reason}
    version = ctypes.c_int()
    status = library.cudaRuntimeGetVersion(ctypes.byref(version))
    if status:
        return {"version": None, "reason": f"cudaRuntimeGetVersion failed with {status}"}
    return {"version": f"{version.value // 1000}.{version.value % 1000 // 10}", "reason": None}


def _first_library(names: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str]:
    reasons = []
    for name in names:
        try:
            return ctypes.CDLL(name), ""
        except OSError as err:
            reasons.append(one_line(err))
    return None, reasons[0]


def _tensorrt(backend: str) -> dict[str, Any]:
    from export.doctor.runtime_opinion import refusal
    from export.engine.trt_module import load_trt
    from runtime.errors import DgsNetError
    from runtime.machine import cuda_device

    try:
        trt = load_trt(backend)
    except DgsNetError as err:
        return {"usable": False, "reason": one_line(err), "version": None, "targets": []}
    device = cuda_device()
    answer: dict[str, Any] = {
        "usable": True,
        "reason": None,
        "module": trt.api.__name__,
        "version": trt.version,
        "targets": list(trt.architectures),
        "refusal": device and refusal(backend, trt.version, device.target, device.name),
    }
    # TensorRT proper needs the device for this; TensorRT-RTX does not.
    if device is not None or backend == "tensorrt-rtx":
        logger = trt.api.Logger(trt.api.Logger.INTERNAL_ERROR)
        if trt.api.Builder(logger) is None:
            answer |= {"usable": False, "reason": "its builder does not start"}
    return answer


def _onnxruntime() -> dict[str, Any]:
    from runtime.backends.onnx_session import import_onnxruntime

    try:
        onnxruntime = import_onnxruntime()
    except (MissingDependencyError, OSError) as err:
        reason = one_line(err.__cause__ or err)
        return {"usable": False, "reason": reason, "version": None, "providers": [], "opens": {}}
    from export.doctor.elf import needed_libraries
    from export.doctor.runtime_opinion import refusal

    providers = onnxruntime.get_available_providers()
    linked = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    needs = [name for name in needed_libraries(linked) if "nvinfer" in name] if linked.exists() else []
    version = onnxruntime.__version__
    return {
        "usable": True,
        "reason": None,
        "version": version,
        "providers": providers,
        "tensorrt_provider_needs": sorted(needs),
        "opens": {device: _opens(onnxruntime, device, providers) for device in ("cpu", "cuda")},
        "refusal": {device: refusal("onnxruntime", version, device, None) for device in ("cpu", "cuda")},
    }


def _opens(onnxruntime: Any, device: str, providers: list[str]) -> str | None:
    """Returns None if a session opens and runs on the device, else why it does not."""
    from runtime.backends.onnx_session import PROVIDERS

    wanted = PROVIDERS[device]
    if wanted not in providers:
        return f"it was built without {wanted}"
    import numpy as np

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    try:
        session = onnxruntime.InferenceSession(_TINY_MODEL, options, providers=[wanted])
        opened = session.get_providers()[0]
        if opened != wanted:
            return f"asked for {wanted}, it opened {opened}: its CUDA or cuDNN libraries do not load"
        (result,) = session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
        return one_line(err)
    return None if float(result[0]) == -1.0 else f"it computed {float(result[0])} where -1 is right"


_QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "cuda": _cuda,
    "cuda-runtime": _cuda_runtime,
    "tensorrt": lambda: _tensorrt("tensorrt"),
    "tensorrt-rtx": lambda: _tensorrt("tensorrt-rtx"),
    "onnxruntime": _onnxruntime,
}
