"""CUDA through NVIDIA's cuda-python: the driver API of ``cuda.bindings``, every status checked.

The driver API alone: it makes the primary context a matter of explicit calls, and has one table of errors.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.interface import CudaApi, Device, DeviceMemory, Graph, PinnedMemory, Stream
from runtime.cuda.releases import Releases
from runtime.errors import EngineLoadError, one_line

_NAME_BYTES = 256


class CudaPython(CudaApi):
    """The binding ``cuda-python``.

    Args:
        driver: the module ``cuda.bindings.driver``.
    """

    name = "cuda-python"
    has_graphs = True
    has_mapped_memory = True

    def __init__(self, driver: ModuleType) -> None:
        self._driver = driver
        self._device: Any = None
        self._context: Any = None

    def retain(self) -> None:
        """See ``CudaApi.retain``."""
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain, self._device)

    def release(self) -> None:
        """See ``CudaApi.release``."""
        self._context = None
        self._call(self._driver.cuDevicePrimaryCtxRelease, self._device)

    def bind_thread(self) -> None:
        """See ``CudaApi.bind_thread``."""
        self._call(self._driver.cuCtxSetCurrent, self._context)

    def unbind_thread(self) -> None:
        """See ``CudaApi.unbind_thread``."""
        self._call(self._driver.cuCtxSetCurrent, self._driver.CUcontext(0))

    def create_stream(self) -> Stream:
        """See ``CudaApi.create_stream``."""
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        stream = self._call(self._driver.cuStreamCreate, flags)
        return Stream(int(stream), stream)

    def destroy_stream(self, stream: Stream) -> None:
        """See ``CudaApi.destroy_stream``."""
        self._call(self._driver.cuStreamDestroy, stream.native)

    def synchronize(self, stream: Stream) -> None:
        """See ``CudaApi.synchronize``."""
        self._call(self._driver.cuStreamSynchronize, stream.native)

    def allocate(self, size: int) -> DeviceMemory:
        """See ``CudaApi.allocate``."""
        memory = self._call(self._driver.cuMemAlloc, size)
        return DeviceMemory(int(memory), memory)

    def free(self, memory: DeviceMemory) -> None:
        """See ``CudaApi.free``."""
        self._call(self._driver.cuMemFree, memory.native)

    def allocate_pinned(self, size: int, *, mapped: bool = False) -> PinnedMemory:
        """See ``CudaApi.allocate_pinned``."""
        flags = int(self._driver.CU_MEMHOSTALLOC_DEVICEMAP) if mapped else 0
        address = int(self._call(self._driver.cuMemHostAlloc, size, flags))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return PinnedMemory(array, address)

    def free_pinned(self, memory: PinnedMemory) -> None:
        """See ``CudaApi.free_pinned``."""
        self._call(self._driver.cuMemFreeHost, memory.native)

    def copy_in(self, target: DeviceMemory, source: NDArray[np.uint8], stream: Stream) -> None:
        """See ``CudaApi.copy_in``."""
        copy = self._driver.cuMemcpyHtoDAsync
        self._call(copy, target.native, source.ctypes.data, source.nbytes, stream.native)

    def copy_out(self, target: NDArray[np.uint8], source: DeviceMemory, stream: Stream) -> None:
        """See ``CudaApi.copy_out``."""
        copy = self._driver.cuMemcpyDtoHAsync
        self._call(copy, target.ctypes.data, source.native, target.nbytes, stream.native)

    def mapped_address(self, memory: PinnedMemory) -> int:
        """See ``CudaApi.mapped_address``."""
        return int(self._call(self._driver.cuMemHostGetDevicePointer, memory.native, 0))

    def begin_capture(self, stream: Stream) -> None:
        """See ``CudaApi.begin_capture``."""
        # Other threads may allocate meanwhile: only this one is bound to what a recording allows.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream.native, mode)

    def end_capture(self, stream: Stream) -> Graph:
        """See ``CudaApi.end_capture``."""
        releases = Releases()
        try:
            recorded = self._call(self._driver.cuStreamEndCapture, stream.native)
            releases.add(lambda: self._call(self._driver.cuGraphDestroy, recorded))
            graph = Graph(self._call(self._driver.cuGraphInstantiate, recorded, 0))
        except EngineLoadError:
            with contextlib.suppress(EngineLoadError):
                releases.close()
            raise
        try:
            releases.close()
        except EngineLoadError:
            with contextlib.suppress(EngineLoadError):
                self.destroy_graph(graph)
            raise
        return graph

    def abandon_capture(self, stream: Stream) -> None:
        """See ``CudaApi.abandon_capture``."""
        try:
            recorded = self._call(self._driver.cuStreamEndCapture, stream.native)
        except EngineLoadError:
            return  # what broke the recording: it ends with an error and leaves nothing behind
        self._call(self._driver.cuGraphDestroy, recorded)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """See ``CudaApi.launch``."""
        self._call(self._driver.cuGraphLaunch, graph.native, stream.native)

    def destroy_graph(self, graph: Graph) -> None:
        """See ``CudaApi.destroy_graph``."""
        self._call(self._driver.cuGraphExecDestroy, graph.native)

    def _device_count(self) -> int:
        self._call(self._driver.cuInit, 0)
        return int(self._call(self._driver.cuDeviceGetCount))

    def _first_device(self) -> Device:
        self._device = self._call(self._driver.cuDeviceGet, 0)
        name = self._call(self._driver.cuDeviceGetName, _NAME_BYTES, self._device)
        attribute = self._driver.CUdevice_attribute
        major = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        return Device(
            name=bytes(name).split(b"\0")[0].decode("utf-8", "replace"),
            target=f"sm_{major}{minor}",
            integrated=self._attribute(attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED) != 0,
            maps_host_memory=self._attribute(attribute.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY) != 0,
        )

    def _attribute(self, attribute: Any) -> int:
        return int(self._call(self._driver.cuDeviceGetAttribute, attribute, self._device))

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Returns the one value of a call, None where it has none."""
        try:
            status, *values = function(*arguments)
        except RuntimeError as err:
            # The binding raises where the driver, or this function of it, cannot be found.
            reason = one_line(err, 200)
            raise EngineLoadError(f"CUDA: {function.__name__} cannot be called ({reason})") from err
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise EngineLoadError(f"CUDA: {function.__name__} failed: {self._text(status)}")
        return values[0] if values else None

    def _text(self, status: Any) -> str:
        parts = []
        for describe in (self._driver.cuGetErrorName, self._driver.cuGetErrorString):
            known, text = describe(status)
            if known == self._driver.CUresult.CUDA_SUCCESS:
                parts.append(bytes(text).decode("utf-8", "replace"))
        return ", ".join(parts) or f"status {int(status)}"
