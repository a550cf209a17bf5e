"""CUDA through pycuda: allocation, copy in, copy out and streams; it has no CUDA graphs.

Written from pycuda's source. pycuda is built where it is installed, with a CUDA toolkit.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.interface import CudaApi, Device, DeviceMemory, PinnedMemory, Stream
from runtime.errors import EngineLoadError, UsageError, one_line

_NON_BLOCKING = 1


class PyCuda(CudaApi):
    """The binding ``pycuda``.

    Args:
        driver: the module ``pycuda.driver``. Importing it makes no context; ``pycuda.autoinit`` would.
    """

    name = "pycuda"

    def __init__(self, driver: ModuleType) -> None:
        self._driver = driver
        self._device: Any = None
        self._context: Any = None
        # pycuda frees a stream when the last reference to it goes.
        self._streams: dict[int, Any] = {}

    def retain(self) -> None:
        """See ``CudaApi.retain``."""
        self._context = self._call("retain_primary_context", self._device.retain_primary_context)

    def release(self) -> None:
        """See ``CudaApi.release``."""
        context, self._context = self._context, None
        self._call("Context.detach", context.detach)

    def bind_thread(self) -> None:
        """See ``CudaApi.bind_thread``."""
        self._call("Context.push", self._context.push)

    def unbind_thread(self) -> None:
        """See ``CudaApi.unbind_thread``."""
        # pycuda ends the process when a thread ends with a context on its stack.
        self._call("Context.pop", self._driver.Context.pop)

    def create_stream(self) -> Stream:
        """See ``CudaApi.create_stream``."""
        stream = self._call("Stream", self._driver.Stream, _NON_BLOCKING)
        handle = int(stream.handle)
        self._streams[handle] = stream
        return Stream(handle, handle)

    def destroy_stream(self, stream: Stream) -> None:
        """See ``CudaApi.destroy_stream``."""
        del self._streams[stream.handle]

    def synchronize(self, stream: Stream) -> None:
        """See ``CudaApi.synchronize``."""
        self._call("Stream.synchronize", self._streams[stream.handle].synchronize)

    def allocate(self, size: int) -> DeviceMemory:
        """See ``CudaApi.allocate``."""
        memory = self._call("mem_alloc", self._driver.mem_alloc, size)
        return DeviceMemory(int(memory), memory)

    def free(self, memory: DeviceMemory) -> None:
        """See ``CudaApi.free``."""
        allocation: Any = memory.native
        self._call("DeviceAllocation.free", allocation.free)

    def allocate_pinned(self, size: int, *, mapped: bool = False) -> PinnedMemory:
        """See ``CudaApi.allocate_pinned``."""
        if mapped:
            raise self._lacks("zero-copy buffers")
        array = self._call("pagelocked_empty", self._driver.pagelocked_empty, size, np.uint8)
        return PinnedMemory(array, array.base)

    def free_pinned(self, memory: PinnedMemory) -> None:
        """See ``CudaApi.free_pinned``."""
        allocation: Any = memory.native
        self._call("PagelockedHostAllocation.free", allocation.free)

    def copy_in(self, target: DeviceMemory, source: NDArray[np.uint8], stream: Stream) -> None:
        """See ``CudaApi.copy_in``."""
        copy = self._driver.memcpy_htod_async
        self._call("memcpy_htod_async", copy, target.native, source, self._streams[stream.handle])

    def copy_out(self, target: NDArray[np.uint8], source: DeviceMemory, stream: Stream) -> None:
        """See ``CudaApi.copy_out``."""
        copy = self._driver.memcpy_dtoh_async
        self._call("memcpy_dtoh_async", copy, target, source.native, self._streams[stream.handle])

    def _device_count(self) -> int:
        self._call("init", self._driver.init)
        return int(self._call("Device.count", self._driver.Device.count))

    def _first_device(self) -> Device:
        self._device = self._call("Device", self._driver.Device, 0)
        major, minor = self._call("compute_capability", self._device.compute_capability)
        kinds = self._driver.device_attribute
        return Device(
            name=str(self._call("Device.name", self._device.name)),
            target=f"sm_{major}{minor}",
            integrated=bool(self._call("get_attribute", self._device.get_attribute, kinds.INTEGRATED)),
            maps_host_memory=bool(
                self._call("get_attribute", self._device.get_attribute, kinds.CAN_MAP_HOST_MEMORY)
            ),
        )

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UsageError:
            raise
        # pycuda has errors of its own, named Error, MemoryError, LogicError..., and says so in their text.
        except Exception as err:
            raise EngineLoadError(f"CUDA: pycuda's {name} failed: {one_line(err, 200)}") from err
