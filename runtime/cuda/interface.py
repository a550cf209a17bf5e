"""What a CUDA binding must offer to run an engine, and the values that go through it.

All of it works on the device's primary context, which every library of the process shares: none is created.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineLoadError, MissingDependencyError, UsageError


@dataclass(frozen=True)
class Device:
    """The CUDA device that engines run on: the first one that the driver offers.

    Attributes:
        name: as the driver calls it.
        target: its compute capability as manifests spell it, such as "sm_87".
        integrated: whether it shares the CPU's memory.
        maps_host_memory: whether it can read and write pinned memory of the CPU in place.
    """

    name: str
    target: str
    integrated: bool
    maps_host_memory: bool


@dataclass(frozen=True)
class Stream:
    """A queue of work on the device: its handle as TensorRT takes it, and the binding's own object."""

    handle: int
    native: object


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of the device: its address as TensorRT takes it, and the binding's own object."""

    address: int
    native: object


@dataclass(frozen=True)
class PinnedMemory:
    """Page-locked memory of the CPU, uint8 ``[n]``, and the binding's own object."""

    array: NDArray[np.uint8]
    native: object


@dataclass(frozen=True)
class Graph:
    """Recorded work that one call launches, as the binding's own object."""

    native: object


class CudaApi(ABC):
    """One binding. Every call raises ``EngineLoadError`` with CUDA's own name and text of what went wrong.

    ``open_device``, ``retain`` and ``release`` belong to one thread; every thread that calls anything else
    stands between its own ``bind_thread`` and ``unbind_thread``.

    Attributes:
        name: as ``--cuda-api`` takes it.
        has_graphs: whether it can record and launch CUDA graphs.
        has_mapped_memory: whether it gives the device's address of pinned memory.
    """

    name: ClassVar[str]
    has_graphs: ClassVar[bool] = False
    has_mapped_memory: ClassVar[bool] = False

    def open_device(self) -> Device:
        """Starts CUDA and returns the device.

        Raises:
            MissingDependencyError: there is no driver or no device.
        """
        try:
            found = self._device_count()
        except EngineLoadError as err:
            raise MissingDependencyError(
                f"no CUDA device is usable here ({err}); install NVIDIA's driver, or choose "
                "--backend onnxruntime"
            ) from err
        if found < 1:
            raise MissingDependencyError(
                "the CUDA driver found no device, expected at least one; choose --backend onnxruntime"
            )
        return self._first_device()

    @abstractmethod
    def retain(self) -> None:
        """Takes hold of the primary context, in the thread that will release it."""

    @abstractmethod
    def release(self) -> None:
        """Lets go of the primary context."""

    @abstractmethod
    def bind_thread(self) -> None:
        """Makes the primary context the calling thread's own."""

    @abstractmethod
    def unbind_thread(self) -> None:
        """Takes the primary context from the calling thread."""

    @abstractmethod
    def create_stream(self) -> Stream:
        """Returns a stream that waits for no other."""

    @abstractmethod
    def destroy_stream(self, stream: Stream) -> None:
        """Frees a stream."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Waits until the stream has nothing left to do."""

    @abstractmethod
    def allocate(self, size: int) -> DeviceMemory:
        """Returns ``size`` bytes on the device, aligned to 256 bytes."""

    @abstractmethod
    def free(self, memory: DeviceMemory) -> None:
        """Frees memory of the device."""

    @abstractmethod
    def allocate_pinned(self, size: int, *, mapped: bool = False) -> PinnedMemory:
        """Returns ``size`` bytes of page-locked memory, ``mapped`` into the device's addresses on request."""

    @abstractmethod
    def free_pinned(self, memory: PinnedMemory) -> None:
        """Frees page-locked memory; its array must not be touched any more."""

    @abstractmethod
    def copy_in(self, target: DeviceMemory, source: NDArray[np.uint8], stream: Stream) -> None:
        """Queues a copy of pinned bytes to the device."""

    @abstractmethod
    def copy_out(self, target: NDArray[np.uint8], source: DeviceMemory, stream: Stream) -> None:
        """Queues a copy from the device into pinned bytes."""

    def mapped_address(self, memory: PinnedMemory) -> int:
        """Returns the device's address of mapped pinned memory."""
        raise self._lacks("zero-copy buffers")

    def begin_capture(self, stream: Stream) -> None:
        """Starts to record what this thread queues on the stream, instead of running it."""
        raise self._lacks("CUDA graphs")

    def end_capture(self, stream: Stream) -> Graph:
        """Ends the recording and returns it ready to launch."""
        raise self._lacks("CUDA graphs")

    def abandon_capture(self, stream: Stream) -> None:
        """Ends a recording that went wrong, so that the stream runs again what it is given."""
        raise self._lacks("CUDA graphs")

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Queues a recording."""
        raise self._lacks("CUDA graphs")

    def destroy_graph(self, graph: Graph) -> None:
        """Frees a recording."""
        raise self._lacks("CUDA graphs")

    @abstractmethod
    def _device_count(self) -> int:
        """Starts CUDA and returns how many devices the driver offers."""

    @abstractmethod
    def _first_device(self) -> Device:
        """Remembers the first device for ``retain``, and returns what it is."""

    def _lacks(self, what: str) -> UsageError:
        return UsageError(f"cuda-api {self.name}: it has no {what}, expected cuda-python for them")
