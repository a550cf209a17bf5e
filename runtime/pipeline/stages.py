"""A stream of items through preparation and the engine: in order, overlapping, in bounded memory.

Three stages run beside whoever iterates: one thread reads the items and gives each to the preparation pool,
one collects what is prepared into batches, and the engine's pool runs them. Closing the generator stops all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from runtime.errors import UsageError
from runtime.forking import Owner
from runtime.pipeline.channel import Channel, ChannelClosed

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _End:
    """The last value of a channel: why there is no more, None when the items simply ended."""

    error: BaseException | None = None


@dataclass(frozen=True)
class Stages(Generic[Item, Ready, Result]):
    """The two stages of a stream and the threads that run them.

    Attributes:
        prepare: makes one item ready; raises nothing.
        judge: from ready items to as many results, in order; raises nothing.
        prepare_pool: runs ``prepare``.
        judge_pool: runs ``judge``, one batch a thread.
        batch_size: items of a full batch.
        read_ahead: items that may be under preparation beside the batches.
        batches: batches that may wait for the engine, run, or wait to be taken.
        owner: the process whose threads run them.
    """

    prepare: Callable[[Item], Ready]
    judge: Callable[[list[Ready]], list[Result]]
    prepare_pool: ThreadPoolExecutor
    judge_pool: ThreadPoolExecutor
    batch_size: int
    read_ahead: int
    batches: int
    owner: Owner = field(default_factory=Owner)


def stream_results(
    items: Iterable[Item], stages: Stages[Item, Ready, Result], max_wait_s: float | None
) -> Iterator[Result]:
    """Yields one result per item, in order.

    ``items`` is read in a thread of its own. What it raises comes out here, after the results of the items
    before it.

    Args:
        items: any iterable, endless ones too.
        stages: what to do with them.
        max_wait_s: seconds after which a batch goes without the items that ``items`` has not given yet;
            None waits for full batches, so that equal items always meet in equal batches.

    Raises:
        UsageError: the pools were shut down meanwhile, or belong to the process that this one is a fork of.
    """
    stages.owner.check("the detector")
    prepared: Channel[Future[Ready] | _End] = Channel(stages.read_ahead)
    judged: Channel[Future[list[Result]] | _End] = Channel(stages.batches)
    # Daemons: the iterable may block for ever, which must not keep the process alive. They hold the channels
    # and not this generator, so that an abandoned one is collected and stops them.
    reading = (iter(items), stages, prepared)
    threading.Thread(target=_read, args=reading, name="dgsnet-read", daemon=True).start()
    batching = (stages, prepared, judged, max_wait_s)
    threading.Thread(target=_batch, args=batching, name="dgsnet-batch", daemon=True).start()
    try:
        while (batch := judged.get()) is not None:
            if isinstance(batch, _End):
                if batch.error is not None:
                    raise batch.error
                return
            for result in batch.result():
                yield result
                stages.owner.check("the detector")
    except CancelledError as err:
        raise _closed() from err
    finally:
        # In a child that was forked meanwhile the channels may be locked for ever.
        if stages.owner.is_this_process:
            for value in (*prepared.close(), *judged.close()):
                if isinstance(value, Future):
                    value.cancel()


def _read(
    source: Iterator[Item],
    stages: Stages[Item, Ready, Result],
    prepared: Channel[Future[Ready] | _End],
) -> None:
    end = _End()
    try:
        for item in source:
            try:
                future = stages.prepare_pool.submit(stages.prepare, item)
            except RuntimeError as err:
                end = _End(_of_pool(err))
                break
            try:
                prepared.put(future)
            except ChannelClosed:
                future.cancel()
                return
    except BaseException as err:  # the caller's own, to be raised where the caller can catch it
        end = _End(err)
    _put_quietly(prepared, end)


def _batch(
    stages: Stages[Item, Ready, Result],
    prepared: Channel[Future[Ready] | _End],
    judged: Channel[Future[list[Result]] | _End],
    max_wait_s: float | None,
) -> None:
    end: _End | None = None
    try:
        while end is None:
            batch, end = _collected(prepared, stages.batch_size, max_wait_s)
            if batch:
                judged.put(stages.judge_pool.submit(stages.judge, batch))
    except ChannelClosed:
        return
    except CancelledError:
        end = _End(_closed())
    except RuntimeError as err:
        end = _End(_of_pool(err))
    except BaseException as err:
        end = _End(err)
    if end is not None:
        _put_quietly(judged, end)


def _collected(
    prepared: Channel[Future[Ready] | _End], size: int, max_wait_s: float | None
) -> tuple[list[Ready], _End | None]:
    """Returns the next items, all prepared, up to ``size``; and the end when it was reached."""
    batch: list[Ready] = []
    deadline = None
    while len(batch) < size:
        value = prepared.get(deadline)
        if value is None:
            break
        if isinstance(value, _End):
            return batch, value
        batch.append(value.result())
        if max_wait_s is not None:
            deadline = time.monotonic() + max_wait_s
    return batch, None


def _put_quietly(channel: Channel[Future[Result] | _End], end: _End) -> None:
    try:
        channel.put(end)
    except ChannelClosed:
        return


def is_shut_down(err: RuntimeError) -> bool:
    """Whether a pool refused work because it was shut down; one that gets no more threads raises alike."""
    return "shutdown" in str(err)


def _of_pool(err: RuntimeError) -> Exception:
    return _closed() if is_shut_down(err) else err


def _closed() -> UsageError:
    return UsageError("the detector was closed while a stream was running; close it after the last verdict")
