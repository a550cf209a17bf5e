"""Threads that each own what a thread must own alone, fed from one bounded queue."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.releases import drop_locals
from runtime.errors import DgsNetError, EngineLoadError, one_line

logger = logging.getLogger("dgsnet.tensorrt")

_JOBS_PER_WORKER = 2

Result = tuple[NDArray[np.float32], NDArray[np.float32]]
_Job = tuple[NDArray[np.uint8], "Future[Result]"]


class Worker(Protocol):
    """What a thread owns: opened, used and closed in that thread."""

    def open(self) -> None:
        """Takes what it needs; whatever was taken when this fails, ``close`` frees."""

    def infer(self, images: NDArray[np.uint8]) -> Result:
        """Runs one batch."""

    def close(self) -> None:
        """Frees all of it; harmless when called twice."""


class WorkerPool:
    """Opens workers one after another, each in its own thread, and closes them in reverse order.

    Args:
        workers: what the threads own; the first outlives the others.

    Raises:
        DgsNetError: a worker did not open; those before it are closed again.
    """

    def __init__(self, workers: list[Worker]) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_JOBS_PER_WORKER * len(workers))
        self._threads: list[threading.Thread] = []
        self._failures: list[DgsNetError] = []
        self._giving = threading.Lock()
        self._is_closed = False
        for index, worker in enumerate(workers):
            opened: Future[None] = Future()
            thread = threading.Thread(
                target=self._work, args=(index, worker, opened), name=f"dgsnet-engine-{index}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
            try:
                opened.result()
            except BaseException as err:
                self._end()
                if self._failures:
                    logger.debug("closing after a failed opening: %s", self._failures[0])
                raise err

    def run(self, images: NDArray[np.uint8]) -> Result:
        """Gives a batch to the next free worker and waits for its result; any thread may call it.

        Raises:
            DgsNetError: what the worker raised, or that the pool is closed.
        """
        done: Future[Result] = Future()
        # Held while the queue is full: whoever closes waits behind the jobs that came before.
        with self._giving:
            if self._is_closed:
                raise EngineLoadError("the engine is closed; open the bundle again")
            self._jobs.put((images, done))
        return done.result()

    def close(self) -> None:
        """Lets the given jobs end, then closes every worker.

        Raises:
            DgsNetError: the first failure of a worker's ``close``, after all were closed.
        """
        self._end()
        if self._failures:
            raise self._failures.pop(0)

    def _end(self) -> None:
        with self._giving:
            if not self._is_closed:
                self._is_closed = True
                for _ in self._threads:
                    self._jobs.put(None)
        self._threads[0].join()

    def _work(self, index: int, worker: Worker, opened: Future[None]) -> None:
        try:
            worker.open()
        except BaseException as err:
            failure = _freed(err)
            self._close(worker)
            opened.set_exception(failure)
            return
        opened.set_result(None)
        while (job := self._jobs.get()) is not None:
            images, done = job
            try:
                result = worker.infer(images)
            except BaseException as err:
                done.set_exception(_freed(err))
            else:
                done.set_result(result)
            del job, images, done
        for later in self._threads[index + 1 :]:
            later.join()
        self._close(worker)

    def _close(self, worker: Worker) -> None:
        try:
            worker.close()
        except BaseException as err:
            self._failures.append(_freed(err))


def _freed(err: BaseException) -> DgsNetError:
    """Returns the error to hand to another thread, with nothing of this thread's alive in its traceback."""
    drop_locals(err)
    if isinstance(err, DgsNetError):
        return err
    failure = EngineLoadError(f"the engine failed ({one_line(err)}); open the bundle again")
    failure.__cause__ = err
    return failure
