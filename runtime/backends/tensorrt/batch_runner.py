"""One execution context at one batch size, enqueued call by call or launched as one CUDA graph.

A graph freezes the shape, the addresses and the state of the context that it was recorded from, so every
graph has a context of its own. Contexts of one lane never run at once and share its scratch memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.backends.tensorrt.buffers import TensorBuffer, queue_copy_in, queue_copy_out
from runtime.backends.tensorrt.engine_host import EngineHost
from runtime.cuda.interface import DeviceMemory, Graph, Stream
from runtime.errors import EngineLoadError
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class LaneMemory:
    """What the contexts of one lane share.

    Attributes:
        stream: the lane's stream.
        scratch: device memory for what lies between the layers.
        scratch_bytes: its size.
        images: the input, uint8 rows of 224 x 224 x 3.
        logit: float32 rows of 1.
        embedding: float32 rows of D.
    """

    stream: Stream
    scratch: DeviceMemory
    scratch_bytes: int
    images: TensorBuffer
    logit: TensorBuffer
    embedding: TensorBuffer


class BatchRunner:
    """Runs what lies in the staging of a lane. Belongs to the lane's thread.

    Args:
        host: the opened engine.
        memory: the lane's.
        profile: index of the optimisation profile.
    """

    def __init__(self, host: EngineHost, memory: LaneMemory, profile: int) -> None:
        self._host = host
        self._cuda = host.cuda
        self._memory = memory
        self._profile = profile
        self._batch = 0
        self._context: tensorrt.IExecutionContext | None = None
        self._graph: Graph | None = None

    def open(self) -> None:
        """Makes the context and tells it where everything lies.

        Raises:
            EngineLoadError: TensorRT or CUDA refuses.
        """
        self._context = self._host.new_context()
        stream = self._memory.stream
        if not self._context.set_optimization_profile_async(self._profile, stream.handle):
            raise self._host.refused(f"optimisation profile {self._profile}")
        self._context.set_device_memory(self._memory.scratch.address, self._memory.scratch_bytes)
        for tensor, buffer in (
            (INPUT_NAME, self._memory.images),
            (LOGIT_NAME, self._memory.logit),
            (EMBEDDING_NAME, self._memory.embedding),
        ):
            if not self._context.set_tensor_address(tensor, buffer.address):
                raise self._host.refused(f"the address of {tensor}")

    def queue(self, batch: int) -> None:
        """Queues copy in, inference and copies out of ``batch`` rows, as one launch once they are recorded.

        Raises:
            EngineLoadError: TensorRT or CUDA refuses, or another batch size was recorded.
        """
        if self._graph is None:
            self._set_batch(batch)
            self._enqueue(batch)
        elif batch == self._batch:
            self._cuda.launch(self._graph, self._memory.stream)
        else:
            # A new shape would change the context under its graph.
            raise EngineLoadError(f"found a batch of {batch}, this CUDA graph was recorded at {self._batch}")

    def record(self) -> None:
        """Records what ``queue`` did last, which must have run once and come to its end, as a CUDA graph.

        Raises:
            EngineLoadError: TensorRT or CUDA refuses to record; ``queue`` goes on as before.
        """
        stream = self._memory.stream
        if self._context is None or self._graph is not None:
            return
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(
            stream.handle
        ):
            raise EngineLoadError("the engine says that it cannot be recorded")
        self._cuda.begin_capture(stream)
        try:
            self._enqueue(self._batch)
        except BaseException:
            self._cuda.abandon_capture(stream)
            raise
        self._graph = self._cuda.end_capture(stream)

    def close(self) -> None:
        """Frees the graph, then the context; the stream must be idle."""
        graph, self._graph = self._graph, None
        try:
            if graph is not None:
                self._cuda.destroy_graph(graph)
        finally:
            self._context = None

    def _set_batch(self, batch: int) -> None:
        if self._context is None or batch == self._batch:
            return
        self._batch = 0
        if not self._context.set_input_shape(INPUT_NAME, (batch, MOSAIC_SIDE, MOSAIC_SIDE, 3)):
            raise self._host.refused(f"a batch of {batch} in optimisation profile {self._profile}")
        missing = self._context.infer_shapes()
        if missing:
            raise self._host.refused(f"a batch of {batch} without {', '.join(missing)}")
        found = tuple(self._context.get_tensor_shape(LOGIT_NAME))
        if found != (batch,):
            raise EngineLoadError(
                f"{LOGIT_NAME}: found {list(found)}, expected [{batch}]; rebuild the engine"
            )
        self._batch = batch

    def _enqueue(self, batch: int) -> None:
        stream, memory = self._memory.stream, self._memory
        queue_copy_in(self._cuda, memory.images, batch, stream)
        if self._context is None or not self._context.execute_async_v3(stream.handle):
            raise self._host.refused(f"running a batch of {batch}")
        queue_copy_out(self._cuda, memory.logit, batch, stream)
        queue_copy_out(self._cuda, memory.embedding, batch, stream)
