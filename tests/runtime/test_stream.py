"""Streams: order, bounds, ends of every kind, and eight threads on one Detector."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.detector import Detector
from runtime.errors import UsageError
from runtime.pictures.mosaics import PictureMosaics, mosaic_from_picture
from runtime.pipeline.channel import Channel, ChannelClosed


@pytest.fixture
def detector(bundle: Path) -> Iterator[Detector]:
    with Detector.open(bundle) as opened:
        yield opened


def stream_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("dgsnet-read", "dgsnet-batch")]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_channel__keeps_order_and_blocks_at_its_capacity() -> None:
    channel: Channel[int] = Channel(2)
    put: list[int] = []

    def fill() -> None:
        for value in range(5):
            channel.put(value)
            put.append(value)

    thread = threading.Thread(target=fill)
    thread.start()
    wait_until(lambda: len(put) == 2)
    time.sleep(0.05)
    assert put == [0, 1]
    assert [channel.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    thread.join(10)
    assert channel.get(time.monotonic() + 0.01) is None


def test_channel__close_wakes_both_sides() -> None:
    ended: queue.Queue[str] = queue.Queue()

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except ChannelClosed:
            ended.put("closed")

    full, empty = Channel[int](1), Channel[int](1)
    full.put(7)
    for action in (lambda: full.put(8), empty.get):
        threading.Thread(target=run, args=(action,), daemon=True).start()
    time.sleep(0.05)
    assert (full.close(), empty.close()) == ([7], [])
    assert [ended.get(timeout=10) for _ in range(2)] == ["closed", "closed"]
    with pytest.raises(ChannelClosed):
        full.get()


def test_stream__keeps_order_whatever_takes_long(
    detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter(np.random.default_rng(5).uniform(0, 0.03, 60))

    def slow(item: Any, **options: Any) -> PictureMosaics:
        time.sleep(next(waits))
        return mosaic_from_picture(item, **options)

    monkeypatch.setattr("runtime.pipeline.preparation.mosaic_from_picture", slow)
    names = [str(pictures[k % 6]) for k in range(50)]
    assert [d.path for d in detector.stream(iter(names))] == names


def test_stream__gives_what_it_has_while_the_source_pauses(detector: Detector, pictures: list[Path]) -> None:
    go_on = threading.Event()

    def source() -> Iterator[Path]:
        yield pictures[0]
        assert go_on.wait(30)
        yield pictures[1]

    stream = detector.stream(source(), max_wait_ms=20)
    assert next(stream).path == str(pictures[0])  # without the rest of its batch, which is not there yet
    go_on.set()
    assert [d.path for d in stream] == [str(pictures[1])]


def test_stream__waits_for_full_batches_when_told_to(
    detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = detector.backend.run

    def run(images: np.ndarray) -> Any:
        sizes.append(len(images))
        return real(images)

    def source() -> Iterator[Path]:
        for path in pictures:
            time.sleep(0.02)
            yield path

    monkeypatch.setattr(detector.backend, "run", run)
    assert len(list(detector.stream(source(), max_wait_ms=None))) == 6
    assert sizes == [4, 2]


def test_stream__judges_what_came_before_the_iterable_failed(
    detector: Detector, pictures: list[Path]
) -> None:
    def broken() -> Iterator[Path]:
        yield from pictures[:5]
        raise LookupError("the caller's own")

    stream = detector.stream(broken())
    assert [next(stream).path for _ in range(5)] == [str(path) for path in pictures[:5]]
    with pytest.raises(LookupError, match="the caller's own"):
        next(stream)
    wait_until(lambda: not stream_threads())


def test_stream__closing_it_early_stops_its_threads(detector: Detector, pictures: list[Path]) -> None:
    taken = itertools.count()
    source = (pictures[next(taken) % 6] for _ in itertools.repeat(None))
    stream = detector.stream(source)
    next(stream)
    assert set(stream_threads()) == {"dgsnet-read", "dgsnet-batch"}
    stream.close()
    wait_until(lambda: not stream_threads())
    count = next(taken)
    time.sleep(0.1)
    assert next(taken) == count + 1
    assert detector.predict(pictures[:1])[0].error is None


def test_stream__an_abandoned_one_is_collected(detector: Detector, pictures: list[Path]) -> None:
    next(detector.stream(itertools.cycle(pictures)))
    wait_until(lambda: not stream_threads())


def test_stream__reads_no_further_than_a_few_batches_while_nobody_takes(
    detector: Detector, pictures: list[Path]
) -> None:
    taken = itertools.count()
    stream = detector.stream(pictures[next(taken) % 6] for _ in itertools.repeat(None))
    next(stream)
    time.sleep(0.5)  # nobody takes; the source could give thousands in this time
    assert next(taken) <= 8 * detector.batch_size
    stream.close()


def test_close__during_a_stream_is_said_in_plain_words(bundle: Path, pictures: list[Path]) -> None:
    detector = Detector.open(bundle)
    stream = detector.stream(itertools.cycle(pictures))
    next(stream)
    detector.close()
    with pytest.raises(UsageError, match="closed while a stream was running"):
        for _ in stream:
            pass
    with pytest.raises(UsageError, match="detector is closed"):
        detector.predict(pictures)
    detector.close()


def test_predict__is_shared_by_eight_threads(
    detector: Detector, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {str(path): d.logit for path, d in zip(pictures, detector.predict(pictures), strict=True)}
    real = detector.backend.run
    inside: set[int] = set()
    together: list[int] = []

    def run(images: np.ndarray) -> Any:
        inside.add(threading.get_ident())
        time.sleep(0.002)
        together.append(len(inside))
        try:
            return real(images)
        finally:
            inside.discard(threading.get_ident())

    monkeypatch.setattr(detector.backend, "run", run)
    failures: list[str] = []

    def work(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(3):
            names = [str(pictures[k]) for k in draw.integers(0, 6, draw.integers(1, 8))]
            names.insert(1, str(tmp_path / "missing.png"))
            found = detector.predict(names)
            if [d.path for d in found] != names or found[1].error is None:
                failures.append(f"{seed}: order")
            for detection in found[:1] + found[2:]:
                if detection.logit != pytest.approx(expected[str(detection.path)], abs=1e-4):
                    failures.append(f"{seed}: {detection.logit}, not {expected[str(detection.path)]}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert set(together) == {1}, "several threads inside an engine that takes one"
    assert not any(thread.is_alive() for thread in threads)


class Hostile:
    """A file object and a path at once that raise what nobody expects."""

    def __fspath__(self) -> str:
        raise ZeroDivisionError("from a path")


class HostileFile:
    def read(self, *_size: int) -> bytes:
        raise RecursionError("from a file")


def test_predict__no_item_can_raise(detector: Detector, pictures: list[Path]) -> None:
    items = [
        Hostile(),
        HostileFile(),
        None,
        object(),
        "nul\0byte",
        "\ud800",
        b"\xff\xd8",
        1.5,
        [],
        pictures[0],
    ]
    found = detector.predict(items)
    assert [d.error is not None for d in found] == [True] * 9 + [False]
    assert found[0].error.code == "internal"
    assert "ZeroDivisionError: from a path" in found[0].error.message


def test_predict__of_one_picture_asks_for_a_list(detector: Detector, pictures: list[Path]) -> None:
    array = np.zeros((64, 64, 3), np.uint8)
    with pictures[0].open("rb") as file, Image.open(pictures[0]) as image:
        for item in (str(pictures[0]), pictures[0], pictures[0].read_bytes(), file, image, array, None):
            with pytest.raises(UsageError, match="put a single picture in a list"):
                detector.predict(item)  # type: ignore[arg-type]
    assert [each.error for each in detector.predict(np.stack([array, array]))] == [None, None]


def test_predict__an_engine_that_raises_anything_fails_its_items_only(
    detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector.backend, "run", lambda images: 1 // 0)
    found = detector.predict(pictures)
    assert [d.error.code for d in found] == ["engine-load"] * 6
    assert "ZeroDivisionError" in found[0].error.message


def test_stream__memory_is_bounded(detector: Detector, pictures: list[Path]) -> None:
    """A long stream holds no more of its items than a short one does."""
    alive = 0
    most = 0
    lock = threading.Lock()
    content = pictures[0].read_bytes()

    class Counted(bytes):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def source() -> Iterator[bytes]:
        nonlocal alive, most
        for _ in range(200):
            with lock:
                alive += 1
                most = max(most, alive)
            yield Counted(content)

    assert sum(d.error is None for d in detector.stream(source())) == 200
    assert most <= 2 * detector.batch_size + 16
    assert sys.getrefcount(content) < 10
