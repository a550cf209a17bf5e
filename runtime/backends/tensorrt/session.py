"""A TensorRT or TensorRT-RTX engine as a backend. Any number of threads may call its ``run``."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.backends.tensorrt.engine_host import EngineFile, EngineHost
from runtime.backends.tensorrt.lane import Lane
from runtime.backends.tensorrt.workers import Worker, WorkerPool
from runtime.cuda.interface import CudaApi
from runtime.errors import UsageError

logger = logging.getLogger("dgsnet.tensorrt")


class TensorRtSession(Backend):
    """An engine with one thread for each execution context.

    CUDA is used in those threads alone: the caller's own CUDA context is never touched.

    Args:
        file: the engine.
        cuda: the CUDA binding.
        contexts: how many batches run at once.
        cuda_graphs: True demands CUDA graphs, False runs without, None takes them where they can be had.
        zero_copy: whether a GPU that shares the CPU's memory works on the staging itself.

    Raises:
        EngineLoadError: manifest and machine disagree, or the engine does not load or breaks its contract.
        MissingDependencyError: TensorRT, a driver or a device is missing.
        UsageError: the binding or the device lacks what is asked for.
    """

    def __init__(
        self,
        file: EngineFile,
        cuda: CudaApi,
        *,
        contexts: int = 1,
        cuda_graphs: bool | None = None,
        zero_copy: bool = False,
    ) -> None:
        profiles = file.entry.profiles
        widest = max(profiles, key=lambda profile: profile[2])
        least = min(profile[0] for profile in profiles)
        super().__init__(file.entry.backend, file.embed_dim, (least, widest[1], widest[2]))
        _require(cuda, graphs=cuda_graphs, zero_copy=zero_copy)
        host = EngineHost(file, cuda)
        workers: list[Worker] = [
            _Worker(host, Lane(host, graphs=cuda_graphs, zero_copy=zero_copy), owns_host=index == 0)
            for index in range(contexts)
        ]
        self._pool = WorkerPool(workers)
        if host.device is not None:
            self.name = f"{file.entry.backend}:{host.device.target}"

    def close(self) -> None:
        """Lets the batches that were given end, then frees everything.

        Raises:
            EngineLoadError: CUDA reported an error while it was freed, after all of it was.
        """
        if self.owner.is_this_process:
            self._pool.close()

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._pool.run(images)


class _Worker:
    """A lane in its thread; the first one also holds the engine, and with it the primary context."""

    def __init__(self, host: EngineHost, lane: Lane, *, owns_host: bool) -> None:
        self._host = host
        self._lane = lane
        self._owns_host = owns_host
        self._is_bound = False

    def open(self) -> None:
        """Binds the thread to the primary context and opens the lane."""
        if self._owns_host:
            self._host.open()
        else:
            self._host.cuda.bind_thread()
            self._is_bound = True
        self._lane.open()

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs one batch."""
        return self._lane.infer(images)

    def close(self) -> None:
        """Closes the lane, then what lies below it."""
        try:
            self._lane.close()
        finally:
            if self._owns_host:
                self._host.close()
            elif self._is_bound:
                self._is_bound = False
                self._host.cuda.unbind_thread()


def _require(cuda: CudaApi, *, graphs: bool | None, zero_copy: bool) -> None:
    if graphs and not cuda.has_graphs:
        raise UsageError(f"cuda-graphs: {cuda.name} has none; use --cuda-api cuda-python or leave them out")
    if zero_copy and not cuda.has_mapped_memory:
        raise UsageError(
            f"zero-copy: found --cuda-api {cuda.name}, expected cuda-python, which alone gives the device's "
            "address of pinned memory; use it or leave zero-copy out"
        )
    if graphs is None and not cuda.has_graphs:
        logger.info("%s has no CUDA graphs: every batch is enqueued call by call", cuda.name)
