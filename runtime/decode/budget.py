"""A bound on the pixels that are in memory at once, over all threads that decode. Standard library only.

Eight decoders that each meet a picture of 200 megapixels would hold 6 GB; small pictures never wait.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections import deque

# glibc keeps what a thread freed for that thread. Eight of 196 megapixels, decoded one after another by eight
# threads, so held 4.5 GB; returned they hold 0.75 GB, for 15 ms each beside 2 s of decoding. What eight
# threads keep of pictures of up to an eighth each is within the budget anyway.
_KEPT_SHARE = 8


class PixelBudget:
    """Pixels that may be in memory at once. Whoever asks first is served first, large pictures too.

    Args:
        pixels: how many; a picture of more has all of it for itself.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = self._free = pixels
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    def hold(self) -> PixelHold:
        """Returns one picture's part of it, still empty. Use as a context manager, which gives it back."""
        return PixelHold(self)

    def acquire(self, pixels: int) -> int:
        """Waits for ``pixels`` to be free and takes them; returns how many it took."""
        pixels = min(pixels, self._pixels)
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._queue[0] is ticket and self._free >= pixels)
                self._free -= pixels
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()  # the next in the queue may fit too
        return pixels

    def release(self, pixels: int) -> None:
        """Gives pixels back, whose memory was freed before."""
        if pixels > self._pixels // _KEPT_SHARE:
            _return_memory()
        with self._changed:
            self._free += pixels
            self._changed.notify_all()


class PixelHold:
    """What one picture takes of a budget: nothing before its size is known, until its pixels are let go.

    Attributes:
        waited_ms: how long it had to wait for others.
    """

    def __init__(self, budget: PixelBudget) -> None:
        self.waited_ms = 0.0
        self._budget = budget
        self._pixels = 0

    def __enter__(self) -> PixelHold:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._pixels:
            self._budget.release(self._pixels)
            self._pixels = 0

    def take(self, pixels: int) -> None:
        """Waits until there is room; once for each picture."""
        started = time.perf_counter()
        self._pixels = self._budget.acquire(pixels)
        self.waited_ms = (time.perf_counter() - started) * 1e3


def _return_memory() -> None:
    """Gives freed memory back to the system, where the C library has a call for it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone
        if trim is not None:
            trim(0)
