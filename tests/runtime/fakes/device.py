"""A fake CUDA device. It is no device: it keeps the rules of CUDA for our calls, and computes in numpy.

Work is queued and runs only when its stream is synchronised, so that a result read too early is wrong.
A broken rule is written down in ``violations``, whatever the caller makes of the error that it also gets.
The call whose number is ``fail_at`` fails as if the device had refused it; what frees something still does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT = 256
_PAGE = 4096
_FIRST_ADDRESS = 0x7F00_0000_0000
_MAPPED_OFFSET = 0x0100_0000_0000_0000


class CudaFailure(Exception):
    """What the skins turn into the error of their binding."""


@dataclass(eq=False)
class FakeStream:
    handle: int
    pending: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    recorder: int = 0
    scratch: set[int] = field(default_factory=set)


@dataclass(eq=False)
class FakeGraph:
    work: list[Callable[[], None]]
    owners: list[int]
    is_instance: bool = False


class FakeDevice:
    def __init__(
        self,
        name: str = "Fake GPU",
        capability: tuple[int, int] = (8, 7),
        *,
        integrated: bool = False,
        fail_at: int | None = None,
        count: int = 1,
    ) -> None:
        self.name, self.capability, self.integrated, self.count = name, capability, integrated, count
        self.fail_at = fail_at
        self.calls: list[str] = []
        self.violations: list[str] = []
        self.retained = 0
        self.bound: set[int] = set()
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, tuple[np.ndarray, bool]] = {}
        self.streams: dict[int, FakeStream] = {}
        self.graphs: set[FakeGraph] = set()
        self.objects: dict[str, int] = {}  # living objects of TensorRT
        self.contexts: set[int] = set()  # ids of living execution contexts
        self.refuses_capture = False
        self.lock = threading.RLock()
        self._next = _FIRST_ADDRESS
        self._dead: list[np.ndarray] = []

    # Rules

    def enter(self, name: str) -> bool:
        """Notes a call and returns whether it is the one that fails."""
        with self.lock:
            self.calls.append(name)
            return len(self.calls) - 1 == self.fail_at

    def call(self, name: str, *, frees: Callable[[], None] | None = None) -> None:
        fails = self.enter(name)
        if frees is not None:
            frees()
        if fails:
            raise CudaFailure(f"fake failure of {name}")

    def violate(self, what: str) -> CudaFailure:
        with self.lock:
            self.violations.append(what)
        return CudaFailure(what)

    def need_context(self, name: str) -> None:
        if self.retained < 1 or threading.get_ident() not in self.bound:
            raise self.violate(f"{name} in a thread without the primary context")

    def need_no_recording(self, name: str) -> None:
        me = threading.get_ident()
        if any(s.recording is not None and s.recorder == me for s in self.streams.values()):
            raise self.violate(f"{name} while this thread records a graph")

    # Contexts, streams, memory

    def retain(self) -> None:
        self.retained += 1

    def release(self) -> None:
        if self.retained < 1:
            raise self.violate("primary context released more often than retained")
        self.retained -= 1
        if self.retained == 0:
            alive = {name: count for name, count in self.objects.items() if count}
            left = [len(self.memory), len(self.pinned), len(self.streams), len(self.graphs)]
            if alive or any(left):
                self.violate(f"primary context released under {alive or left}")

    def bind(self) -> None:
        if self.retained < 1:
            raise self.violate("bound to a primary context that nobody holds")
        self.bound.add(threading.get_ident())

    def unbind(self) -> None:
        self.bound.discard(threading.get_ident())

    def create_stream(self) -> FakeStream:
        self.need_context("stream creation")
        stream = FakeStream(self._take(1))
        self.streams[stream.handle] = stream
        return stream

    def destroy_stream(self, handle: int) -> None:
        self.need_context("stream destruction")
        stream = self.stream(handle)
        if stream.pending:
            self.violate("stream destroyed with work in it")
        del self.streams[handle]

    def stream(self, handle: int) -> FakeStream:
        if handle not in self.streams:
            raise self.violate(f"use of stream {handle:#x}, which does not exist")
        return self.streams[handle]

    def synchronize(self, handle: int, *, drop: bool = False) -> None:
        self.need_context("synchronisation")
        self.need_no_recording("synchronisation")
        stream = self.stream(handle)
        work, stream.pending = stream.pending, []
        stream.scratch.clear()
        if drop:
            return
        for step in work:
            step()

    def queue(self, handle: int, step: Callable[[], None]) -> None:
        stream = self.stream(handle)
        (stream.pending if stream.recording is None else stream.recording).append(step)

    def allocate(self, size: int) -> int:
        self.need_context("allocation")
        self.need_no_recording("allocation")
        if size < 1:
            raise self.violate("allocation of nothing")
        with self.lock:
            address = self._take(size)
            self.memory[address] = np.full(size, 0xA5, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.need_context("free")
        if address not in self.memory:
            raise self.violate("device memory freed that is not there (twice?)")
        self._bury(self.memory.pop(address))

    def allocate_pinned(self, size: int, *, mapped: bool) -> np.ndarray:
        self.need_context("pinned allocation")
        room = np.full(size + _PAGE, 0x5A, np.uint8)
        start = -room.ctypes.data % _PAGE
        array = room[start : start + size]
        with self.lock:
            self.pinned[array.ctypes.data] = (array, mapped)
        return array

    def free_pinned(self, address: int) -> None:
        self.need_context("free of pinned memory")
        if address not in self.pinned:
            raise self.violate("pinned memory freed that is not there (twice?)")
        self._bury(self.pinned.pop(address)[0])

    def mapped_address(self, address: int) -> int:
        if not self.pinned[address][1]:
            raise self.violate("address on the device of pinned memory that is not mapped")
        return address + _MAPPED_OFFSET

    def at(self, address: int, size: int, *, host: bool = False) -> np.ndarray:
        """Returns the bytes that an address means to the device (or, ``host``, to its copy engine)."""
        if host or address >= _MAPPED_OFFSET:
            start = address if host else address - _MAPPED_OFFSET
            spaces = {base: a for base, (a, mapped) in self.pinned.items() if host or mapped}
        else:
            start, spaces = address, self.memory
        for base, array in list(spaces.items()):
            if base <= start and start + size <= base + len(array):
                return array[start - base : start - base + size]
        raise self.violate(f"{size} bytes at {address:#x} lie in no living allocation")

    def copy_in(self, target: int, source: int, size: int, handle: int) -> None:
        self.need_context("copy in")
        self.at(target, size), self.at(source, size, host=True)
        self.queue(handle, lambda: np.copyto(self.at(target, size), self.at(source, size, host=True)))

    def copy_out(self, target: int, source: int, size: int, handle: int) -> None:
        self.need_context("copy out")
        self.at(target, size, host=True), self.at(source, size)
        self.queue(handle, lambda: np.copyto(self.at(target, size, host=True), self.at(source, size)))

    # Graphs

    def begin_capture(self, handle: int) -> None:
        self.need_context("capture")
        stream = self.stream(handle)
        if self.refuses_capture:
            raise CudaFailure("fake refusal of a recording")
        if stream.pending or stream.recording is not None:
            raise self.violate("recording begun on a stream that is busy")
        stream.recording, stream.recorder = [], threading.get_ident()

    def end_capture(self, handle: int, *, fails: bool) -> FakeGraph:
        stream = self.stream(handle)
        if stream.recording is None or stream.recorder != threading.get_ident():
            raise self.violate("recording ended that this thread did not begin")
        work, stream.recording = stream.recording, None
        if fails:
            raise CudaFailure("fake failure of a recording")
        graph = FakeGraph(work, [step.owner for step in work if hasattr(step, "owner")])
        self.graphs.add(graph)
        return graph

    def instantiate(self, graph: FakeGraph) -> FakeGraph:
        if graph not in self.graphs:
            raise self.violate("instantiation of a graph that is not there")
        instance = FakeGraph(graph.work, graph.owners, is_instance=True)
        self.graphs.add(instance)
        return instance

    def launch(self, graph: FakeGraph, handle: int) -> None:
        self.need_context("launch")
        if graph not in self.graphs or not graph.is_instance:
            raise self.violate("launch of a graph that is not there")
        if not set(graph.owners) <= self.contexts:
            raise self.violate("launch of a graph whose execution context is gone")
        for step in graph.work:
            self.queue(handle, step)

    def destroy_graph(self, graph: FakeGraph) -> None:
        self.need_context("graph destruction")
        if graph not in self.graphs:
            raise self.violate("graph destroyed that is not there (twice?)")
        if graph.is_instance and not set(graph.owners) <= self.contexts:
            self.violate("execution context destroyed before its graph")
        self.graphs.discard(graph)

    # End

    def leaks(self) -> list[str]:
        """Returns what is left or was broken, one line each; empty when everything was given back."""
        counts = {
            "device allocations": len(self.memory),
            "pinned allocations": len(self.pinned),
            "streams": len(self.streams),
            "graphs": len(self.graphs),
            "holds of the primary context": self.retained,
            "bound threads": len(self.bound),
            **self.objects,
        }
        return [f"{count} {name} left" for name, count in counts.items() if count] + self.violations

    def _take(self, size: int) -> int:
        address = self._next
        self._next += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        return address

    def _bury(self, array: np.ndarray) -> None:
        array[:] = 0xDD
        self._dead.append(array)  # its address must not be given out again
