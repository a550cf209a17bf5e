"""Single items from many threads, judged in shared batches: for a server that gets one picture a request.

Nothing waits for a batch to fill. While the engine runs, what becomes ready gathers, and the next run takes
all of it up to a full batch: one item alone goes at once, many at a time share their runs.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Generic

from runtime.errors import UsageError
from runtime.pipeline.stages import Item, Ready, Result, Stages, is_shut_down


class SharedBatches(Generic[Item, Ready, Result]):
    """Batches made of what any number of threads submit.

    Args:
        stages: what to do with an item, and the threads that do it; streams may use them at the same time,
            and take turns with these batches.
        runs: batches that may be in the engine's pool at once.
    """

    def __init__(self, stages: Stages[Item, Ready, Result], runs: int) -> None:
        self._stages = stages
        self._most_runs = runs
        self._runs = 0
        self._lock = threading.Lock()
        self._ready: deque[tuple[Ready, Future[Result]]] = deque()

    def submit(self, item: Item) -> Future[Result]:
        """Returns at once; the future gets the item's result.

        Raises:
            UsageError: the pools were shut down.
            RuntimeError: the system gives no more threads; a future raises it too.
        """
        result: Future[Result] = Future()
        try:
            prepared = self._stages.prepare_pool.submit(self._prepare, item, result)
        except RuntimeError as err:
            raise _of_pool(err) from err
        prepared.add_done_callback(lambda ended: _fail([result], _closed()) if ended.cancelled() else None)
        return result

    def _prepare(self, item: Item, result: Future[Result]) -> None:
        if result.cancelled():
            result.set_running_or_notify_cancel()  # without it concurrent.futures.wait waits for ever
            return
        try:
            ready = self._stages.prepare(item)
        except BaseException as err:  # prepare promises to raise nothing; a waiting caller must hear of it
            _fail([result], err)
            return
        with self._lock:
            self._ready.append((ready, result))
            if self._runs == self._most_runs:
                return
            self._runs += 1
        self._start()

    def _start(self) -> None:
        """Puts a run into the engine's pool, behind the batches of streams that wait there."""
        try:
            run = self._stages.judge_pool.submit(self._run)
        except RuntimeError as err:
            self._give_up(_of_pool(err))
            return
        run.add_done_callback(lambda ended: self._give_up(_closed()) if ended.cancelled() else None)

    def _run(self) -> None:
        with self._lock:
            count = min(len(self._ready), self._stages.batch_size)
            batch = [self._ready.popleft() for _ in range(count)]
        batch = [(ready, result) for ready, result in batch if result.set_running_or_notify_cancel()]
        try:
            results = self._stages.judge([ready for ready, _ in batch]) if batch else []
        except BaseException as err:  # as above
            for _, result in batch:
                result.set_exception(err)
        else:
            for (_, result), value in zip(batch, results, strict=True):
                result.set_result(value)
        with self._lock:
            if not self._ready:
                self._runs -= 1
                return
        self._start()

    def _give_up(self, why: Exception) -> None:
        """Fails what will not run, when the pool was shut down or gets no thread."""
        with self._lock:
            self._runs -= 1
            left = [result for _, result in self._ready]
            self._ready.clear()
        _fail(left, why)


def _fail(results: list[Future[Result]], error: BaseException) -> None:
    """Ends futures that have not begun to run; one that its caller cancelled meanwhile stays cancelled."""
    for result in results:
        if result.set_running_or_notify_cancel():
            result.set_exception(error)


def _of_pool(err: RuntimeError) -> Exception:
    return _closed() if is_shut_down(err) else err


def _closed() -> UsageError:
    return UsageError("the detector is closed; open the bundle again")
