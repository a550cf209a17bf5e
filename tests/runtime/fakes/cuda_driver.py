"""``cuda.bindings.driver`` over the fake device: what our code calls, by its real arguments."""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.runtime.fakes.device import CudaFailure, FakeDevice


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_UNKNOWN = 999


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY = 19
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUcontext(int):
    pass


def fake_driver(device: FakeDevice) -> SimpleNamespace:
    """Returns what ``import cuda.bindings.driver`` would give on a machine with the fake device."""

    def checked(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                value = function(*arguments)
            except CudaFailure:
                return CUresult.CUDA_ERROR_UNKNOWN, None
            return (CUresult.CUDA_SUCCESS,) if value is None else (CUresult.CUDA_SUCCESS, value)

        call.__name__ = function.__name__
        call.__wrapped__ = function  # for inspect.signature
        return call

    def cuInit(Flags: int) -> None:
        device.call("cuInit")

    def cuDeviceGetCount() -> int:
        device.call("cuDeviceGetCount")
        return device.count

    def cuDeviceGet(ordinal: int) -> int:
        device.call("cuDeviceGet")
        return ordinal

    def cuDeviceGetName(length: int, dev: int) -> bytes:
        device.call("cuDeviceGetName")
        return device.name.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: int) -> int:
        device.call("cuDeviceGetAttribute")
        kind = CUdevice_attribute
        return {
            kind.CU_DEVICE_ATTRIBUTE_INTEGRATED: int(device.integrated),
            kind.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: 1,
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: device.capability[0],
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: device.capability[1],
        }[attrib]

    def cuDevicePrimaryCtxRetain(dev: int) -> CUcontext:
        device.call("cuDevicePrimaryCtxRetain")
        device.retain()
        return CUcontext(7)

    def cuDevicePrimaryCtxRelease(dev: int) -> None:
        device.call("cuDevicePrimaryCtxRelease", frees=device.release)

    def cuCtxSetCurrent(ctx: CUcontext) -> None:
        if ctx == 0:
            device.call("cuCtxSetCurrent", frees=device.unbind)
        else:
            device.call("cuCtxSetCurrent")
            device.bind()

    def cuStreamCreate(Flags: int) -> int:
        device.call("cuStreamCreate")
        if Flags != CUstream_flags.CU_STREAM_NON_BLOCKING:
            raise device.violate("a stream that waits for the default one")
        return device.create_stream().handle

    def cuStreamDestroy(hStream: int) -> None:
        device.call("cuStreamDestroy", frees=lambda: device.destroy_stream(hStream))

    def cuStreamSynchronize(hStream: int) -> None:
        fails = device.enter("cuStreamSynchronize")
        device.synchronize(hStream, drop=fails)
        if fails:
            raise CudaFailure("fake failure of the work before")

    def cuMemAlloc(bytesize: int) -> int:
        device.call("cuMemAlloc")
        return device.allocate(bytesize)

    def cuMemFree(dptr: int) -> None:
        device.call("cuMemFree", frees=lambda: device.free(dptr))

    def cuMemHostAlloc(bytesize: int, Flags: int) -> int:
        device.call("cuMemHostAlloc")
        return device.allocate_pinned(bytesize, mapped=bool(Flags & 2)).ctypes.data

    def cuMemFreeHost(p: int) -> None:
        device.call("cuMemFreeHost", frees=lambda: device.free_pinned(p))

    def cuMemHostGetDevicePointer(p: int, Flags: int) -> int:
        device.call("cuMemHostGetDevicePointer")
        return device.mapped_address(p)

    def cuMemcpyHtoDAsync(dstDevice: int, srcHost: int, ByteCount: int, hStream: int) -> None:
        device.call("cuMemcpyHtoDAsync")
        device.copy_in(dstDevice, srcHost, ByteCount, hStream)

    def cuMemcpyDtoHAsync(dstHost: int, srcDevice: int, ByteCount: int, hStream: int) -> None:
        device.call("cuMemcpyDtoHAsync")
        device.copy_out(dstHost, srcDevice, ByteCount, hStream)

    def cuStreamBeginCapture(hStream: int, mode: CUstreamCaptureMode) -> None:
        device.call("cuStreamBeginCapture")
        device.begin_capture(hStream)

    def cuStreamEndCapture(hStream: int) -> Any:
        return device.end_capture(hStream, fails=device.enter("cuStreamEndCapture"))

    def cuGraphInstantiate(hGraph: Any, flags: int) -> Any:
        device.call("cuGraphInstantiate")
        return device.instantiate(hGraph)

    def cuGraphLaunch(hGraphExec: Any, hStream: int) -> None:
        device.call("cuGraphLaunch")
        device.launch(hGraphExec, hStream)

    def cuGraphExecDestroy(hGraphExec: Any) -> None:
        device.call("cuGraphExecDestroy", frees=lambda: device.destroy_graph(hGraphExec))

    def cuGraphDestroy(hGraph: Any) -> None:
        device.call("cuGraphDestroy", frees=lambda: device.destroy_graph(hGraph))

    def cuGetErrorName(error: CUresult) -> bytes:
        return error.name.encode()

    def cuGetErrorString(error: CUresult) -> bytes:
        return b"a fake error"

    functions = {name: checked(value) for name, value in locals().items() if name.startswith("cu")}
    return SimpleNamespace(
        **functions,
        CUresult=CUresult,
        CUdevice_attribute=CUdevice_attribute,
        CUstream_flags=CUstream_flags,
        CUstreamCaptureMode=CUstreamCaptureMode,
        CUcontext=CUcontext,
        CU_MEMHOSTALLOC_DEVICEMAP=2,
    )
