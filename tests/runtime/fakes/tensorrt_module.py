"""A fake TensorRT or TensorRT-RTX over the fake device. It runs no engine: it keeps TensorRT's rules.

An enqueue needs shape, addresses and scratch memory; a recording needs an enqueue of the same shape before
it; contexts go before their engine and engines before the primary context; a context belongs to one thread.
"""

from __future__ import annotations

import enum
import json
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.runtime.fakes.device import CudaFailure, FakeDevice
from tests.runtime.fakes.plans import compute

DataType = enum.Enum("DataType", "FLOAT HALF INT8 UINT8")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
ExecutionContextAllocationStrategy = enum.Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
DynamicShapesKernelSpecializationStrategy = enum.Enum("Kernels", "LAZY EAGER NONE")


class ILogger:
    """Base of the caller's logger."""

    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING

    def __init__(self) -> None:
        pass


def fake_tensorrt(
    device: FakeDevice, *, rtx: bool = False, version: str = "10.3.0.26", cache: bytes = b"kernels v1"
) -> SimpleNamespace:
    """Returns the module.

    Args:
        device: the fake device.
        rtx: whether it is TensorRT-RTX, with a runtime configuration and a cache of kernels.
        version: what ``__version__`` says.
        cache: what RTX's cache of kernels serialises to, and the only blob that it takes.
    """

    class Counted:
        """Counts the living, and minds where and in which order they die."""

        def __init__(self, below: Counted | None) -> None:
            self.parent_counter = below.counter if below is not None else None
            self.counter = [0]
            if self.parent_counter is not None:
                self.parent_counter[0] += 1
            name = type(self).__name__
            device.objects[name] = device.objects.get(name, 0) + 1

        def __del__(self) -> None:
            if not hasattr(self, "counter"):
                return
            name = type(self).__name__
            device.objects[name] -= 1
            if self.parent_counter is not None:
                self.parent_counter[0] -= 1
            if self.counter[0]:
                device.violate(f"{name} destroyed before what was made from it")
            if threading.get_ident() not in device.bound:
                device.violate(f"{name} destroyed in a thread without the primary context")

    class Runtime(Counted):
        def __new__(cls, logger: ILogger) -> Any:
            return None if device.enter("Runtime") else super().__new__(cls)

        def __init__(self, logger: ILogger) -> None:
            device.need_context("Runtime")
            super().__init__(None)
            self.logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
            fails = device.enter("deserialize_cuda_engine")
            device.need_context("deserialize_cuda_engine")
            plan = json.loads(bytes(serialized_engine)[64:])
            if plan["host_code"] and not self.engine_host_code_allowed:
                self.logger.log(ILogger.ERROR, "fake: the plan needs setEngineHostCodeAllowed(true)")
                return None
            if fails:
                self.logger.log(ILogger.ERROR, "fake failure of deserialisation")
                return None
            return ICudaEngine(self, plan)

    class ICudaEngine(Counted):
        def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
            super().__init__(runtime)
            self.plan = plan
            self.num_io_tensors = len(plan["tensors"])
            self.num_optimization_profiles = len(plan["profiles"])
            self.device_memory_size_v2 = plan["scratch"]

        def get_tensor_name(self, index: int) -> str:
            return list(self.plan["tensors"])[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode[self.plan["tensors"][name][0]]

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[self.plan["tensors"][name][1]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.plan["tensors"][name][2])

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            return [(size, 224, 224, 3) for size in self.plan["profiles"][profile_index]]

        def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
            if device.enter("create_execution_context"):
                return None
            device.need_context("create_execution_context")
            chosen = strategy.strategy if rtx else strategy
            if chosen is not ExecutionContextAllocationStrategy.USER_MANAGED:
                device.violate(f"a context with {chosen}")
            return IExecutionContext(self)

    class IExecutionContext(Counted):
        def __init__(self, engine: ICudaEngine) -> None:
            super().__init__(engine)
            self.plan = engine.plan
            self.thread = threading.get_ident()
            self.profile: int | None = None
            self.batch: int | None = None
            self.enqueued: int | None = None
            self.addresses: dict[str, int] = {}
            self.scratch: int | None = None
            device.contexts.add(id(self))

        def __del__(self) -> None:
            device.contexts.discard(id(self))
            super().__del__()

        def check(self, name: str) -> bool:
            if self.thread != threading.get_ident():
                device.violate(f"{name} in another thread than the context's own")
            device.need_context(name)
            return not device.enter(name)

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            ok = self.check("set_optimization_profile_async")
            device.stream(stream_handle)
            self.profile, self.batch, self.enqueued = profile_index, None, None
            return ok

        def set_device_memory(self, memory: int, size: int) -> None:
            if not self.check("set_device_memory"):
                raise RuntimeError("fake failure of set_device_memory")
            if size < self.plan["scratch"] or memory % 256:
                device.violate("scratch memory is too small or not aligned to 256 bytes")
            if size:
                device.at(memory, size)
            self.scratch = memory

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            ok = self.check("set_input_shape")
            least, _, most = self.plan["profiles"][self.profile or 0]
            if name != "images" or not least <= shape[0] <= most or shape[1:] != (224, 224, 3):
                device.violate(f"{name} {shape} outside profile {self.profile}")
                return False
            if self.batch != shape[0]:
                self.batch, self.enqueued = shape[0], None
            return ok

        def set_tensor_address(self, name: str, memory: int) -> bool:
            ok = self.check("set_tensor_address")
            if name not in self.plan["tensors"] or memory % 256:
                device.violate(f"address {memory:#x} for {name}")
            self.addresses[name] = memory
            return ok

        def infer_shapes(self) -> list[str]:
            if not self.check("infer_shapes"):
                raise RuntimeError("fake failure of infer_shapes")
            return [] if self.batch else ["images"]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self.batch or -1, *self.plan["tensors"][name][2][1:])

        def execute_async_v3(self, stream_handle: int) -> bool:
            ok = self.check("execute_async_v3")
            stream = device.stream(stream_handle)
            if self.profile is None or self.batch is None or self.scratch is None:
                device.violate("enqueue without profile, shape or scratch memory")
                return False
            if len(self.addresses) != 3:
                device.violate("enqueue without every address")
                return False
            if stream.recording is not None and self.enqueued != self.batch:
                device.violate("recording of a shape that was not enqueued before")
                return False
            busy = [s for s in device.streams.values() if s is not stream and self.scratch in s.scratch]
            if busy:
                device.violate("two streams work in one scratch memory")
            if not ok:
                return False
            if stream.recording is None:
                stream.scratch.add(self.scratch)
                self.enqueued = self.batch
            device.queue(stream_handle, Enqueued(self))
            return True

        if rtx:

            def is_stream_capturable(self, stream: int) -> bool:
                return self.check("is_stream_capturable")

    class Enqueued:
        """Work of a context, with the shape and the addresses of the moment when it was queued."""

        def __init__(self, context: IExecutionContext) -> None:
            self.owner = id(context)
            self.batch, self.addresses = context.batch or 0, dict(context.addresses)
            self.scratch, self.scratch_bytes = context.scratch, context.plan["scratch"]

        def __call__(self) -> None:
            if self.owner not in device.contexts:
                raise device.violate("work of an execution context that is gone")
            if self.scratch_bytes:
                device.at(self.scratch or 0, self.scratch_bytes)[:] = 0xEE
            size = self.batch * 224 * 224 * 3
            images = device.at(self.addresses["images"], size).reshape(self.batch, 224, 224, 3)
            logit, embedding = compute(images)
            for name, value in (("logit", logit), ("embedding", embedding)):
                raw = value.reshape(-1).view(np.uint8)
                np.copyto(device.at(self.addresses[name], raw.nbytes), raw)

    module = SimpleNamespace(
        __name__="tensorrt_rtx" if rtx else "tensorrt",
        __version__=version,
        ILogger=ILogger,
        Runtime=Runtime,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
    )
    if rtx:
        _add_runtime_configuration(module, device, cache)
    return module


def _add_runtime_configuration(module: SimpleNamespace, device: FakeDevice, content: bytes) -> None:
    class IRuntimeCache:
        blob: bytes | None = None

        def deserialize(self, blob: bytes) -> bool:
            device.need_context("IRuntimeCache.deserialize")
            if device.enter("IRuntimeCache.deserialize") or bytes(blob) != content:
                return False
            self.blob = bytes(blob)
            return True

        def serialize(self) -> bytes | None:
            device.need_context("IRuntimeCache.serialize")
            return None if device.enter("IRuntimeCache.serialize") else content

    class IRuntimeConfig:
        strategy: Any = None
        cache: IRuntimeCache | None = None
        dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> IRuntimeCache:
            if device.enter("create_runtime_cache"):
                raise RuntimeError("fake failure of create_runtime_cache")
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            self.cache = cache
            return not device.enter("set_runtime_cache")

    def create_runtime_config(self: Any) -> IRuntimeConfig:
        if device.enter("create_runtime_config"):
            raise RuntimeError("fake failure of create_runtime_config")
        module.configs.append(IRuntimeConfig())
        return module.configs[-1]

    module.configs = []
    module.IRuntimeCache, module.IRuntimeConfig = IRuntimeCache, IRuntimeConfig
    module.ICudaEngine.create_runtime_config = create_runtime_config
    module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy


__all__ = ["CudaFailure", "fake_tensorrt"]
