"""One thread's way through the engine: a stream, its memory, and a runner for each batch size in use."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from runtime.backends.tensorrt.batch_runner import BatchRunner, LaneMemory
from runtime.backends.tensorrt.buffers import allocate_buffer
from runtime.backends.tensorrt.engine_host import EngineHost
from runtime.cuda.releases import Releases
from runtime.errors import EngineLoadError, UsageError
from runtime.spec import MOSAIC_SIDE

logger = logging.getLogger("dgsnet.tensorrt")

# A stream of pictures has the full batch, single ones and a remainder; each runner costs device memory.
_MOST_RUNNERS = 8
_IMAGE_BYTES = MOSAIC_SIDE * MOSAIC_SIDE * 3
_FLOAT_BYTES = 4

Profiles = tuple[tuple[int, int, int], ...]


def place_batch(profiles: Profiles, count: int) -> tuple[int, int]:
    """Returns the profile that a batch runs in, by its index, and the batch size that it runs at.

    The narrowest profile that holds the batch is taken. Where none does, the batch grows to the smallest
    minimum above it.

    Args:
        profiles: (min, opt, max) batch sizes.
        count: rows, at most the largest maximum.
    """
    holding = [k for k, (least, _, most) in enumerate(profiles) if least <= count <= most]
    if holding:
        return min(holding, key=lambda k: profiles[k][2] - profiles[k][0]), count
    above = [k for k, (least, _, _) in enumerate(profiles) if least > count]
    chosen = min(above, key=lambda k: profiles[k][0])
    return chosen, profiles[chosen][0]


class Lane:
    """Runs batches one at a time. Belongs to one thread, which the primary context is bound to.

    Args:
        host: the opened engine.
        graphs: True demands CUDA graphs, False runs without, None takes them where they can be had.
        zero_copy: whether the device works on the staging itself.
    """

    def __init__(self, host: EngineHost, *, graphs: bool | None, zero_copy: bool) -> None:
        self._host = host
        self._cuda = host.cuda
        self._profiles: Profiles = host.file.entry.profiles
        self._graphs_demanded = graphs is True
        self._graphs = graphs is not False and host.cuda.has_graphs
        self._zero_copy = zero_copy
        self._releases = Releases()
        self._memory: LaneMemory | None = None
        self._runners: OrderedDict[tuple[int, int], BatchRunner] = OrderedDict()

    def open(self) -> None:
        """Makes the stream and the memory.

        Raises:
            UsageError: zero-copy buffers on a device that has memory of its own.
            EngineLoadError: CUDA refuses.
        """
        device = self._host.device
        if self._zero_copy and device and not (device.integrated and device.maps_host_memory):
            raise UsageError(
                f"zero-copy: {device.name} does not share the CPU's memory, expected an integrated GPU; "
                "leave it out"
            )
        rows = max(most for _, _, most in self._profiles)
        stream = self._cuda.create_stream()
        self._releases.add(lambda: self._cuda.destroy_stream(stream))
        scratch_bytes = self._host.scratch_bytes()
        scratch = self._cuda.allocate(max(scratch_bytes, 1))
        self._releases.add(lambda: self._cuda.free(scratch))
        images, logit, embedding = (
            allocate_buffer(
                self._cuda, self._releases, row_bytes=row_bytes, rows=rows, zero_copy=self._zero_copy
            )
            for row_bytes in (_IMAGE_BYTES, _FLOAT_BYTES, _FLOAT_BYTES * self._host.file.embed_dim)
        )
        self._memory = LaneMemory(stream, scratch, scratch_bytes, images, logit, embedding)
        self._releases.add(self._forget_memory)
        self._releases.add(self._close_runners)
        self._releases.add(lambda: self._cuda.synchronize(stream))

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs a checked batch.

        Args:
            images: uint8 ``[n, 224, 224, 3]``, contiguous, n at most the largest maximum of the profiles.

        Returns:
            Raw logits, float32 ``[n]``, and embeddings, float32 ``[n, D]``.

        Raises:
            EngineLoadError: TensorRT or CUDA refuses.
        """
        memory, count = self._memory, len(images)
        if memory is None:
            raise EngineLoadError("the engine is closed; open the bundle again")
        profile, batch = place_batch(self._profiles, count)
        staging = memory.images.rows(batch).reshape(batch, _IMAGE_BYTES)
        staging[:count] = images.reshape(count, _IMAGE_BYTES)
        staging[count:] = staging[count - 1]
        # Without graphs a context follows the batch size, so one is enough for a profile.
        key = (profile, batch if self._graphs else 0)
        try:
            runner = self._runner(key)
            runner.queue(batch)
            self._cuda.synchronize(memory.stream)
            if self._graphs:
                self._record(runner)
        except BaseException:
            self._recover(key)
            raise
        logit = memory.logit.rows(count).view(np.float32)
        embedding = memory.embedding.rows(count).view(np.float32)
        return logit.copy(), embedding.reshape(count, self._host.file.embed_dim).copy()

    def close(self) -> None:
        """Waits for the stream, then frees graphs, contexts, memory and stream."""
        self._releases.close()

    def _runner(self, key: tuple[int, int]) -> BatchRunner:
        runner = self._runners.get(key)
        if runner is not None:
            self._runners.move_to_end(key)
            return runner
        if len(self._runners) >= _MOST_RUNNERS:
            _, oldest = self._runners.popitem(last=False)
            oldest.close()
        if self._memory is None:
            raise EngineLoadError("the engine is closed; open the bundle again")
        runner = self._runners[key] = BatchRunner(self._host, self._memory, key[0])
        runner.open()
        return runner

    def _record(self, runner: BatchRunner) -> None:
        try:
            runner.record()
        except EngineLoadError as err:
            if self._graphs_demanded:
                raise EngineLoadError(f"{err}; leave --cuda-graphs out to run without them") from err
            logger.warning("no CUDA graph, every batch is enqueued call by call: %s", err)
            self._graphs = False
            # Their key names a batch size, which nothing asks for any more.
            self._close_runners()

    def _recover(self, key: tuple[int, int]) -> None:
        """Leaves nothing running behind a failed batch: the next one overwrites the staging."""
        with contextlib.suppress(EngineLoadError):
            if self._memory is not None:
                self._cuda.synchronize(self._memory.stream)
        with contextlib.suppress(EngineLoadError):
            runner = self._runners.pop(key, None)
            if runner is not None:
                runner.close()

    def _close_runners(self) -> None:
        releases = Releases()
        while self._runners:
            releases.add(self._runners.popitem()[1].close)
        releases.close()

    def _forget_memory(self) -> None:
        self._memory = None
