"""The bound on pixels in memory: kept by every thread, fair, given back whatever happens."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime.detector
from runtime.decode import MAX_PIXELS, DecodeLimits
from runtime.decode.budget import PixelBudget, PixelHold
from runtime.detector import Detector
from runtime.errors import ImageError
from runtime.pictures.mosaics import mosaic_from_picture


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def encoded(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    draw = np.random.default_rng(width)
    Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_budget__is_never_exceeded_and_always_given_back() -> None:
    budget = PixelBudget(100)
    lock, held, most = threading.Lock(), 0, 0

    def work(pixels: int) -> None:
        nonlocal held, most
        with budget.hold() as hold:
            hold.take(pixels)
            with lock:
                held += pixels
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= pixels

    sizes = np.random.default_rng(0).integers(1, 101, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, sizes, timeout=30))
    assert 50 < most <= 100
    assert budget.acquire(100) == 100


def test_budget__serves_a_large_picture_before_small_ones_that_came_later() -> None:
    budget = PixelBudget(100)
    served: list[str] = []
    threads = []

    def ask(name: str, pixels: int) -> None:
        budget.acquire(pixels)
        served.append(name)
        budget.release(pixels)

    budget.acquire(10)
    for number, (name, pixels) in enumerate((("large", 100), ("small", 1), ("last", 1)), start=1):
        threads.append(threading.Thread(target=ask, args=(name, pixels), daemon=True))
        threads[-1].start()
        wait_until(lambda number=number: len(budget._queue) == number)  # type: ignore[misc]
    time.sleep(0.02)
    assert served == []
    budget.release(10)
    for thread in threads:
        thread.join(10)
    assert served[0] == "large"
    assert sorted(served) == ["large", "last", "small"]


def test_budget__gives_all_of_it_to_a_picture_that_is_larger() -> None:
    budget = PixelBudget(100)
    with budget.hold() as hold:
        hold.take(10**9)
        assert hold.waited_ms < 1e3
    assert budget.acquire(100) == 100


def test_mosaic_from_picture__holds_pixels_until_the_patches_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = PixelBudget(10_000)
    seen: list[int] = []

    def cut(_pixels: object) -> None:
        seen.append(budget._free)
        raise ImageError("cut")

    monkeypatch.setattr("runtime.patches.selection.selected_patches", cut)
    with pytest.raises(ImageError, match="cut"):
        mosaic_from_picture(encoded(80, 64), budget=budget)
    assert (seen, budget._free) == ([10_000 - 80 * 64], 10_000)
    with pytest.raises(ImageError, match="at most 100 in all"):
        mosaic_from_picture(encoded(80, 64), budget=budget, limits=DecodeLimits(max_pixels=100))
    with pytest.raises(ImageError, match="truncated"):
        mosaic_from_picture(encoded(80, 64)[:3000], budget=budget)
    assert budget._free == 10_000


def test_mosaic_from_picture__does_not_count_the_wait_as_decoding() -> None:
    budget = PixelBudget(80 * 64)
    budget.acquire(80 * 64)
    threading.Timer(0.5, budget.release, [80 * 64]).start()
    started = time.perf_counter()
    made = mosaic_from_picture(encoded(80, 64), budget=budget)
    assert time.perf_counter() - started > 0.4
    assert made.decode_ms < 400


@pytest.mark.parametrize(("limit", "expected"), [(None, MAX_PIXELS), (500, MAX_PIXELS), (10**9, 10**9)])
def test_detector__bounds_what_its_threads_decode_at_once(
    bundle: Path, limit: int | None, expected: int
) -> None:
    options = {} if limit is None else {"max_pixels": limit}
    with Detector.open(bundle, selftest=False, **options) as detector:
        budget = detector._preparation.budget
        assert budget is not None
        assert budget._pixels == expected


def test_detector__keeps_to_it_with_more_threads_than_fit(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two pictures and eight threads: all verdicts come, and never more than two are held."""
    most, lock, held = 0, threading.Lock(), 0
    take, leave = PixelHold.take, PixelHold.__exit__

    def counted_take(hold: PixelHold, pixels: int) -> None:
        nonlocal most, held
        take(hold, pixels)
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.01)

    def counted_leave(hold: PixelHold, *exc: object) -> None:
        nonlocal held
        with lock:
            held -= 1
        leave(hold, *exc)

    monkeypatch.setattr(PixelHold, "take", counted_take)
    monkeypatch.setattr(PixelHold, "__exit__", counted_leave)
    monkeypatch.setattr(runtime.detector, "usable_cpus", lambda: 8)
    monkeypatch.setattr(runtime.detector, "PixelBudget", lambda _pixels: PixelBudget(2 * 320 * 256))
    with Detector.open(bundle) as detector:
        found = detector.predict([encoded(320, 256)] * 24)
    assert [d.error for d in found] == [None] * 24
    assert most == 2


_PEAK = """
import sys
import runtime.detector
from runtime.detector import Detector
runtime.detector.usable_cpus = lambda: 8

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key + ":"))

bundle, picture, limit = sys.argv[1:]
runtime.detector.MAX_PIXELS = int(limit)
with Detector.open(bundle, max_pixels=int(limit)) as detector:
    detector.predict([picture])
    with open("/proc/self/clear_refs", "w") as switch:
        switch.write("5")
    idle = memory("VmRSS")
    assert all(d.error is None for d in detector.predict([picture] * 8))
    print(memory("VmHWM") - idle)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_detector__memory_of_eight_large_pictures_is_that_of_one(bundle: Path, tmp_path: Path) -> None:
    import subprocess

    side = 5000
    path = tmp_path / "large.jpg"
    tile = Image.open(io.BytesIO(encoded(250, 250)))
    large = Image.new("RGB", (side, side))
    for left in range(0, side, 250):
        for top in range(0, side, 250):
            large.paste(tile.point(lambda value, dark=left // 50: value * (300 - dark) // 300), (left, top))
    large.save(path, quality=50)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(bundle), str(path), str(side**2)],
        cwd=Path(runtime.__file__).parent.parent, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # One takes 4 bytes a pixel and some buffers; eight would take 800 MB.
    assert int(done.stdout) < 2 * 4 * side**2
