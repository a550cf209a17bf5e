"""``pycuda.driver`` over the fake device: the names that our code uses, after pycuda's source."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.runtime.fakes.device import CudaFailure, FakeDevice


class Error(Exception):
    """``pycuda.driver.Error``."""


class DeviceAttribute(enum.Enum):
    INTEGRATED = 18
    CAN_MAP_HOST_MEMORY = 19


def fake_pycuda(device: FakeDevice) -> SimpleNamespace:
    """Returns what ``import pycuda.driver`` would give on a machine with the fake device."""

    def checked(name: str, frees: Callable[[], None] | None = None) -> None:
        try:
            device.call(name, frees=frees)
        except CudaFailure as err:
            raise Error(f"{name} failed: {err}") from err

    class Context:
        def __init__(self) -> None:
            self.thread = threading.get_ident()

        def push(self) -> None:
            checked("Context.push")
            device.bind()

        @staticmethod
        def pop() -> None:
            checked("Context.pop", device.unbind)

        def detach(self) -> None:
            if self.thread != threading.get_ident():
                device.violate("context detached in another thread than the one that retained it")
            checked("Context.detach", device.release)

    class Device:
        def __init__(self, number: int) -> None:
            checked("Device")

        @staticmethod
        def count() -> int:
            checked("Device.count")
            return device.count

        def name(self) -> str:
            checked("Device.name")
            return device.name

        def compute_capability(self) -> tuple[int, int]:
            checked("compute_capability")
            return device.capability

        def get_attribute(self, attribute: DeviceAttribute) -> int:
            checked("get_attribute")
            return int(device.integrated) if attribute is DeviceAttribute.INTEGRATED else 1

        def retain_primary_context(self) -> Context:
            checked("retain_primary_context")
            device.retain()
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = 0
            checked("Stream")
            self.handle = device.create_stream().handle

        def __del__(self) -> None:
            if self.handle:
                device.destroy_stream(self.handle)

        def synchronize(self) -> None:
            checked("Stream.synchronize")
            device.synchronize(self.handle)

    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self.address = address

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            checked("DeviceAllocation.free", lambda: device.free(self.address))

    class PagelockedHostAllocation:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        @property
        def __array_interface__(self) -> dict[str, Any]:
            return self.array.__array_interface__

        def free(self) -> None:
            address = self.array.ctypes.data
            checked("PagelockedHostAllocation.free", lambda: device.free_pinned(address))

    def init() -> None:
        checked("init")

    def mem_alloc(bytes: int) -> DeviceAllocation:
        checked("mem_alloc")
        return DeviceAllocation(device.allocate(bytes))

    def pagelocked_empty(shape: int, dtype: type, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        checked("pagelocked_empty")
        allocation = PagelockedHostAllocation(device.allocate_pinned(shape, mapped=False))
        return np.asarray(allocation)

    def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Stream) -> None:
        checked("memcpy_htod_async")
        device.copy_in(int(dest), src.ctypes.data, src.nbytes, stream.handle)

    def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Stream) -> None:
        checked("memcpy_dtoh_async")
        device.copy_out(dest.ctypes.data, int(src), dest.nbytes, stream.handle)

    return SimpleNamespace(
        init=init,
        Device=Device,
        Context=Context,
        Stream=Stream,
        Error=Error,
        device_attribute=DeviceAttribute,
        mem_alloc=mem_alloc,
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
    )
