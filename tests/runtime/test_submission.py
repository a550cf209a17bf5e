"""Detector.submit: one item a call, shared batches, and every way in which a future ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.detection import Detection
from runtime.detector import Detector
from runtime.errors import UsageError
from runtime.pipeline.stages import Stages
from runtime.pipeline.submission import SharedBatches


class Engine:
    """A judge that waits to be let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def judge(self, items: list[int]) -> list[str]:
        self.batches.append(items)
        self.begun.release()
        assert self.go.acquire(timeout=20)
        if 13 in items:
            raise MemoryError("13")
        return [f"<{item}>" for item in items]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def pools() -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    with ThreadPoolExecutor(1) as prepare, ThreadPoolExecutor(1) as judge:
        yield prepare, judge


@pytest.fixture
def shared(
    engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> SharedBatches[int, int, str]:
    return SharedBatches(stages_of(engine, pools), 1)


def stages_of(
    engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor], prepare: Callable[[int], int] = int
) -> Stages[int, int, str]:
    return Stages(prepare, engine.judge, *pools, batch_size=4, read_ahead=8, batches=2)


def settled(pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]) -> None:
    """Waits until everything that was submitted before is prepared: the pool has one thread."""
    pools[0].submit(int).result(20)


def test_submit__one_item_goes_at_once_and_the_next_run_takes_what_gathered(
    shared: SharedBatches[int, int, str], engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    first = shared.submit(0)
    assert engine.begun.acquire(timeout=20)
    others = [shared.submit(number) for number in range(1, 7)]
    settled(pools)
    assert engine.batches == [[0]]
    for _ in range(3):
        engine.go.release()
    assert [future.result(20) for future in (first, *others)] == [f"<{number}>" for number in range(7)]
    assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
    engine.go.release()
    assert shared.submit(9).result(20) == "<9>"


def test_submit__a_stream_waits_for_one_run_and_not_for_all(
    shared: SharedBatches[int, int, str], engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    futures = [shared.submit(number) for number in range(3)]
    assert engine.begun.acquire(timeout=20)
    futures += [shared.submit(number) for number in range(3, 8)]
    settled(pools)
    between = pools[1].submit(lambda: [len(batch) for batch in engine.batches])
    for _ in range(4):
        engine.go.release()
    assert sum(between.result(20)) < 8
    assert [future.result(20) for future in futures] == [f"<{number}>" for number in range(8)]


def test_submit__a_cancelled_item_takes_no_place(
    shared: SharedBatches[int, int, str], engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    shared.submit(0)
    assert engine.begun.acquire(timeout=20)
    second, third = shared.submit(1), shared.submit(2)
    settled(pools)
    assert second.cancel()
    for _ in range(2):
        engine.go.release()
    assert third.result(20) == "<2>"
    assert engine.batches == [[0], [2]]
    with pytest.raises(CancelledError):
        second.result(0)


def test_submit__an_item_cancelled_before_it_is_prepared_ends_for_who_waits(
    shared: SharedBatches[int, int, str], pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    held = threading.Event()
    pools[0].submit(held.wait, 20)
    future = shared.submit(1)
    assert future.cancel()
    held.set()
    settled(pools)
    assert wait([future], timeout=5).done == {future}


def test_submit__what_breaks_reaches_its_callers_and_nobody_after_them(
    shared: SharedBatches[int, int, str], engine: Engine
) -> None:
    engine.go.release()
    with pytest.raises(MemoryError, match="13"):
        shared.submit(13).result(20)
    engine.go.release()
    assert shared.submit(1).result(20) == "<1>"


def test_submit__a_preparation_that_breaks_reaches_its_caller(
    engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    def prepare(item: int) -> int:
        raise KeyboardInterrupt(item)

    with pytest.raises(KeyboardInterrupt):
        SharedBatches(stages_of(engine, pools, prepare), 1).submit(1).result(20)


def test_submit__a_shut_pool_fails_what_waits(
    shared: SharedBatches[int, int, str], engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    running = shared.submit(0)
    assert engine.begun.acquire(timeout=20)
    waiting = [shared.submit(1), shared.submit(2)]
    settled(pools)
    pools[0].shutdown()
    pools[1].shutdown(wait=False, cancel_futures=True)
    engine.go.release()
    assert running.result(20) == "<0>"
    for future in waiting:
        with pytest.raises(UsageError, match="closed"):
            future.result(20)
    with pytest.raises(UsageError, match="closed"):
        shared.submit(3)


@pytest.mark.parametrize("pool", [0, 1])
def test_submit__a_machine_without_threads_is_not_a_closed_detector(
    shared: SharedBatches[int, int, str],
    pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
    pool: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def submit(*_words: object) -> Future[None]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pools[pool], "submit", submit)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        shared.submit(1).result(20)


def test_submit__unprepared_items_fail_when_the_pool_is_shut(
    engine: Engine, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
) -> None:
    hold, held = threading.Event(), threading.Event()

    def prepare(item: int) -> int:
        held.set()
        hold.wait(20)
        return item

    shared = SharedBatches(stages_of(engine, pools, prepare), 1)
    futures = [shared.submit(number) for number in range(3)]
    assert held.wait(20)
    engine.go.release()
    pools[0].shutdown(wait=False, cancel_futures=True)
    hold.set()
    assert futures[0].result(20) == "<0>"
    for future in futures[1:]:
        with pytest.raises(UsageError, match="closed"):
            future.result(20)


@pytest.fixture
def detector(bundle: Path) -> Iterator[Detector]:
    with Detector.open(bundle) as opened:
        yield opened


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


def test_detector_submit__gives_predicts_verdicts_from_many_threads(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = pictures(24)
    alone = [detector.predict([item])[0] for item in items]
    rows: list[int] = []
    run = detector.backend.run

    def counted(mosaics: Any) -> Any:
        rows.append(len(mosaics))
        return run(mosaics)

    monkeypatch.setattr(detector.backend, "run", counted)
    with ThreadPoolExecutor(24) as callers:
        futures: list[Future[Detection]] = list(callers.map(detector.submit, items))
    found = [future.result(30) for future in futures]
    assert [detection.label for detection in found] == [detection.label for detection in alone]
    got, want = ([d.logit for d in detections] for detections in (found, alone))
    np.testing.assert_allclose(np.array(got, float), np.array(want, float), atol=1e-4)
    assert sum(rows) == 24
    assert max(rows) <= detector.batch_size


def test_detector_submit__an_unreadable_item_is_a_detection_with_its_error(
    detector: Detector, tmp_path: Path
) -> None:
    assert detector.submit(tmp_path / "nothing.png").result(20).error is not None
    assert detector.submit(b"no picture").result(20).error is not None


def test_detector_submit__can_be_awaited(detector: Detector) -> None:
    async def judged() -> list[Detection]:
        futures = [asyncio.wrap_future(detector.submit(item)) for item in pictures(5)]
        return await asyncio.gather(*futures)

    assert all(detection.label for detection in asyncio.run(judged()))


def test_detector_submit__after_close_is_refused_and_what_waits_ends(bundle: Path) -> None:
    with Detector.open(bundle) as opened:
        futures = [opened.submit(item) for item in pictures(40)]
    for future in futures:
        error = future.exception(0)
        assert future.result(0).label if error is None else isinstance(error, UsageError)
    with pytest.raises(UsageError, match="closed"):
        opened.submit(pictures(1)[0])
